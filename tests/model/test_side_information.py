"""Side information embedding: λ S[camera, view] on the tokens that enter the ViT's blocks."""

import pytest
import torch
from small_training import small_model
from timm_streams import narrow_model, randomized
from torch import Tensor

from dca_triton import DualAttentionModel
from dca_triton.model import distractor_share, explain, export_program

CAMERAS, VIEWS, WEIGHT = (3, 7, 9), (0, 2), 1.5
OF_IMAGES = {"cameras": torch.tensor([7, 3, -1, -8]), "views": torch.tensor([2, -1, 0, -5])}
OF_PAIRS = {"pair_cameras": torch.tensor([9, 9, 7, -5]), "pair_views": torch.tensor([0, 2, 2, 2])}
PARTNERS = torch.tensor([1, 3, -1, 0])
IMAGES, OTHERS = torch.randn(
    2, 4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
).unbind()
LAYOUTS = pytest.mark.parametrize("layout", ["reference", "paper"])


def build(layout: str = "paper", **options) -> DualAttentionModel:
    sides = {"cameras": CAMERAS, "views": VIEWS, "sie_weight": WEIGHT}
    return small_model(layout=layout, task_type="reid", drop_path_rate=0.0, **(sides | options)).double()


def vectors(model: DualAttentionModel, cameras: Tensor, views: Tensor) -> Tensor:
    """λ S of each image by a loop: the mean over what is unknown."""
    table, found = model.sie.table, []
    for camera, view in zip(cameras.tolist(), views.tolist(), strict=True):
        rows = [CAMERAS.index(camera)] if camera in CAMERAS else range(len(CAMERAS))
        columns = [VIEWS.index(view)] if view in VIEWS else range(len(VIEWS))
        found.append(WEIGHT * sum(table[r, c] for r in rows for c in columns) / (len(rows) * len(columns)))
    return torch.stack(found)[:, None]


def without(model: DualAttentionModel, plain: DualAttentionModel, added: Tensor) -> DualAttentionModel:
    """A model without embeddings whose timm model adds `added` behind its positions."""
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key != "sie.table"})
    vit = plain.backbone.model
    embed = vit._pos_embed

    def with_sides(x: Tensor):
        found = embed(x)
        return (found[0] + added, found[1]) if isinstance(found, tuple) else found + added

    vit._pos_embed = with_sides
    return plain.train(model.training)


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9, msg=name)


@LAYOUTS
def test_the_embedding_is_added_behind_timms_positions(layout: str) -> None:
    model, plain = build(layout).train(), small_model(layout=layout, task_type="reid", drop_path_rate=0.0)
    own = vectors(model, **OF_IMAGES)
    twin = without(model, plain.double(), own)
    equal(model(IMAGES, partner_index=PARTNERS, **OF_IMAGES), twin(IMAGES, partner_index=PARTNERS))
    equal(model.eval()(IMAGES, **OF_IMAGES), twin.eval()(IMAGES))
    gradient = torch.autograd.grad(model.train()(IMAGES, **OF_IMAGES)["sa_logits"].sum(), model.sie.table)
    truth = torch.autograd.grad(twin.train()(IMAGES)["sa_logits"].sum(), model.sie.table)
    torch.testing.assert_close(gradient, truth)
    assert gradient[0].abs().sum() > 0


@LAYOUTS
def test_a_partner_has_its_own_camera(layout: str) -> None:
    model, plain = build(layout).train(), small_model(layout=layout, task_type="reid", drop_path_rate=0.0)
    pairs = vectors(model, OF_PAIRS["pair_cameras"], OF_PAIRS["pair_views"])
    both = torch.cat([vectors(model, **OF_IMAGES), pairs])
    twin = without(model, plain.double(), both)
    found = model(IMAGES, OTHERS, **OF_IMAGES, **OF_PAIRS)
    equal(found, twin(IMAGES, OTHERS))
    swapped = {name: numbers.flip(0) for name, numbers in OF_PAIRS.items()}
    other = model(IMAGES, OTHERS, **OF_IMAGES, **swapped)
    assert not torch.allclose(found["pwca_logits"], other["pwca_logits"])
    torch.testing.assert_close(found["sa_logits"], other["sa_logits"])


def test_an_eva_model_takes_cameras_in_the_papers_layout() -> None:
    name, sizes = "vit_small_patch16_rope_224", {"embed_dim": 64, "depth": 2, "num_heads": 4}
    options = {"task_type": "reid", "img_size": 48}
    torch.manual_seed(0)
    model = randomized(narrow_model(name, sizes, cameras=CAMERAS, sie_weight=WEIGHT, **options)).double()
    model.train()
    own = WEIGHT * model.sie.table[[1, 0, 2], 0][:, None]
    twin = without(model, narrow_model(name, sizes, **options).double(), own)
    images, partners = torch.randn(3, 3, 48, 48, dtype=torch.float64), torch.tensor([1, 2, 0])
    found = model(images, partner_index=partners, cameras=torch.tensor([7, 3, 9]))
    equal(found, twin(images, partner_index=partners))


@torch.no_grad()
def test_a_photo_without_a_camera_gets_the_mean() -> None:
    model = build().eval()
    unknown = model(IMAGES)["sa_logits"]
    for number in (-1, -7, 4):
        given = dict.fromkeys(("cameras", "views"), torch.full((4,), number))
        torch.testing.assert_close(model(IMAGES, **given)["sa_logits"], unknown)
    known = model(IMAGES, **dict.fromkeys(("cameras", "views"), torch.full((4,), 9)))["sa_logits"]
    assert not torch.allclose(known, unknown, atol=1e-4)
    model.sie.table.copy_(model.sie.table.mean((0, 1), keepdim=True).expand_as(model.sie.table))
    torch.testing.assert_close(model(IMAGES, **OF_IMAGES)["sa_logits"], unknown)


@torch.no_grad()
def test_every_way_to_a_result_takes_cameras() -> None:
    model = build().eval()
    outputs = model(IMAGES, **OF_IMAGES, class_tokens_only=True)
    features = model.extract_features(IMAGES, **OF_IMAGES)
    torch.testing.assert_close(features, outputs["combined_features"])
    seen = explain(model, IMAGES, **OF_IMAGES)
    torch.testing.assert_close(seen.sa, outputs["sa_logits"].float().softmax(1))
    assert not torch.allclose(seen.rollout, explain(model, IMAGES).rollout)
    maps = model.get_attention_maps(IMAGES, **OF_IMAGES)["accumulated_attention"][:, 0].float()
    torch.testing.assert_close(maps, seen.rollout)
    assert distractor_share(model, IMAGES, OTHERS).isfinite().all()


def test_sides_of_a_batch_are_those_that_the_model_knows() -> None:
    batch = {"camera": torch.tensor([3.0, -1.0]), "view": [0, 2], "label": [1, 1]}
    both = build().sides_of(batch)
    assert {name: (t.tolist(), t.dtype) for name, t in both.items()} == {
        "cameras": ([3, -1], torch.int64),
        "views": ([0, 2], torch.int64),
    }
    assert list(build(views=()).sides_of(batch)) == ["cameras"]
    assert build(cameras=(), views=()).sides_of(batch) == {}
    assert list(build().sides_of({"view": [0]})) == ["views"]


def test_off_leaves_weights_and_their_names_as_they_are() -> None:
    plain, model = small_model(task_type="reid").state_dict(), build(sie_weight=3.0).float().state_dict()
    assert set(model) - set(plain) == {"sie.table"} and set(plain) <= set(model)
    assert all(torch.equal(plain[key], model[key]) for key in plain)
    assert model["sie.table"].shape == (3, 2, 64) and 0.01 < model["sie.table"].std() < 0.03


def test_a_saved_model_knows_its_cameras(tmp_path) -> None:
    model = build().float().eval()
    model.save_pretrained(tmp_path)
    again = DualAttentionModel.from_pretrained(tmp_path)
    with torch.no_grad():
        found = again(IMAGES.float(), **OF_IMAGES)["sa_logits"]
        torch.testing.assert_close(found, model(IMAGES.float(), **OF_IMAGES)["sa_logits"], rtol=0, atol=0)


def test_the_exported_graph_has_photos_without_a_camera() -> None:
    model = build(depth=1).float().eval()
    images = IMAGES.float()[:3]
    found = export_program(model, class_tokens_only=True).module()(images, class_tokens_only=True)
    with torch.no_grad():
        torch.testing.assert_close(found["sa_logits"], model(images)["sa_logits"], rtol=1e-4, atol=1e-5)


def test_a_training_step_with_cameras_is_one_graph() -> None:
    torch.compiler.reset()
    model = build(depth=1).train()

    def step(images: Tensor, cameras: Tensor, views: Tensor, partners: Tensor) -> Tensor:
        return model(images, partner_index=partners, cameras=cameras, views=views)["pwca_logits"]

    arguments = (IMAGES, OF_IMAGES["cameras"], OF_IMAGES["views"], PARTNERS)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), step(*arguments))
    torch.compiler.reset()


def test_what_does_not_fit_is_refused_with_every_reason() -> None:
    model, plain = build().train(), small_model(task_type="reid").double()
    with pytest.raises(ValueError) as caught:
        model(IMAGES, OTHERS, cameras=torch.zeros(3, dtype=torch.int64), pair_views=torch.zeros(4))
    assert str(caught.value) == (
        "cameras must be (B,) = (4,) in int32 or int64 on cpu, got an int64 tensor (3,) on cpu; "
        "views must be given in training, as the model has embeddings of views, got None; "
        "pair_cameras must be given in training, as the model has embeddings of cameras, got None; "
        "pair_views must be (B,) = (4,) in int32 or int64 on cpu, got a float32 tensor (4,) on cpu"
    )
    with pytest.raises(ValueError, match="cameras must be None for a model without embeddings of cameras"):
        plain(IMAGES, cameras=OF_IMAGES["cameras"])
    with pytest.raises(ValueError, match="pair_cameras must be None without x_pair, got an int64 tensor"):
        model(IMAGES, **OF_IMAGES, pair_cameras=OF_PAIRS["pair_cameras"])
    strange = {"cameras": torch.tensor([7, 8, -1, 3]), "views": OF_IMAGES["views"]}
    reason = r"cameras must be of the model's cameras, or negative, got other values in 1 of 4 rows \(1\)"
    with pytest.raises(ValueError, match=reason):
        model(IMAGES, **strange)
    model.eval()(IMAGES, **strange)  # there a camera may be new
    model.train()
    with pytest.raises(ValueError, match="cameras must be a dense tensor or None, got list"):
        model(IMAGES, cameras=[1, 2, 3, 4])
    model(IMAGES, **OF_IMAGES)  # without x_pair its cameras are not needed


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"cameras": [1, 1]}, r"cameras must be a list of different integers >= 0, got \[1, 1\]"),
        ({"views": [-1]}, r"views must be a list of different integers >= 0, got \[-1\]"),
        ({"cameras": 6}, "cameras must be a list of different integers >= 0, got 6"),
        ({"sie_weight": 0.0}, "sie_weight must be a number > 0, got 0.0"),
        ({"cameras": [1], "task_type": "fgvc"}, r"cameras must be empty for a model of 'fgvc', got \[1\]"),
    ],
)
def test_arguments_outside_their_range(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        small_model(**({"task_type": "reid"} | options))


def test_backbones_whose_tokens_cannot_be_reached_are_refused() -> None:
    sizes = {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 2, "pretrained": False}
    reason = (
        r"cameras must be empty in layout='reference' unless the backbone is a timm VisionTransformer, got"
    )
    with pytest.raises(ValueError, match=reason):
        DualAttentionModel("beit_base_patch16_224", 3, "reid", 1, cameras=[1], **(sizes | {"embed_dim": 72}))
