"""DualAttentionModel: layouts, backbones, modes, and errors."""

import pytest
import torch
from timm_streams import narrow_model

from dca_triton import DualAttentionModel, reference

SMALL = {"num_classes": 5, "img_size": 64, "pretrained": False, "drop_path_rate": 0.0}
REFERENCE = SMALL | {"num_heads": 4, "num_sa_blocks": 3}
PAPER = SMALL | {"layout": "paper"}


def build(**kwargs):
    torch.manual_seed(0)
    return DualAttentionModel("test_vit", **kwargs)


@pytest.fixture(params=["reference", "paper"])
def model(request):
    return build(**(REFERENCE if request.param == "reference" else PAPER))


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3"])
def test_a_backbone_whose_heads_triton_does_not_take_runs_on_pytorch_or_is_refused(name):
    model = narrow_model(name, {"embed_dim": 48, "depth": 1, "num_heads": 2}, img_size=64).eval()
    model(IMAGES)
    model.backend = "triton"
    for call in (model, model.extract_features, model.get_attention_maps):
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot .*D must be one of .*128, got 24"):
            call(IMAGES)


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
PARTNERS = torch.tensor([2, 2, -1])


def eager_block(block, x, partner=None, absent=None):
    """One timm block on maps kept in memory; `partner` (B, N, C) is the normed stream of each distractor."""
    attn = block.attn
    q, k, v = attn.project(block.norm1(x))
    index = None
    pk = pv = None
    if partner is not None:
        _, pk, pv = attn.project(partner)
        index = torch.where(absent, -1, torch.arange(len(x)))
    out, _ = reference.pair_attention(q, k, v, pk, pv, index, attn.scale)
    x = x + block.ls1(attn.proj(attn.norm(out.flatten(2))))
    return x + block.ls2(block.mlp(block.norm2(x))), reference.attention_weights(q, k, attn.scale)


def eager_paper(model, images, partners):
    """The paper's layout as its text reads: one stream after the other, full rollout matrix."""
    blocks, norm = model.backbone.model.blocks, model.backbone.norm
    sa = pwca = model.backbone(images)
    maps = []
    for block in blocks:
        normed = block.norm1(pwca)
        pwca, _ = eager_block(block, pwca, normed[partners.clamp(min=0)], partners < 0)
        sa, weights = eager_block(block, sa)
        maps.append(weights)
    row = reference.rollout(maps)[:, 0]
    selected = reference.select_local(row, model.backbone.num_prefix_tokens, model.top_k_ratio)
    glca, _ = eager_block(model.glca_blocks[0], sa)
    glca = torch.take_along_dim(glca, selected[:, :, None], 1)
    return {"sa_features": norm(sa), "glca_features": norm(glca), "pwca_features": norm(pwca)}


@pytest.mark.parametrize(
    "name, size",
    [
        ("deit_tiny_patch16_224", 64),
        ("deit_tiny_distilled_patch16_224", 64),
        ("vit_base_r50_s16_224", 64),
        ("vit_small_patch14_reg4_dinov2", 56),
    ],
)
def test_paper_layout_equals_eager(name, size):
    torch.manual_seed(0)
    model = DualAttentionModel(
        name, 5, layout="paper", pretrained=False, img_size=size, drop_path_rate=0.0, top_k_ratio=0.3
    ).train()
    images = torch.randn(3, 3, size, size)
    eager = eager_paper(model, images, PARTNERS)
    outputs = model(images, partner_index=PARTNERS)
    for feature, value in eager.items():
        torch.testing.assert_close(outputs[feature], value, rtol=1e-4, atol=1e-4)
    sum(outputs[f"{b}_logits"].square().sum() for b in ("sa", "glca", "pwca")).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing, missing


def test_x_pair_equals_partner_index_of_the_joint_batch():
    model = build(**PAPER).train()
    x, pair = IMAGES[:2], IMAGES[[2, 0]]
    joint = model(torch.cat([x, pair]), partner_index=torch.tensor([2, 3, 0, 1]))
    outputs = model(x, pair)
    for name, value in outputs.items():
        torch.testing.assert_close(value, joint[name][:2])


def test_class_tokens_only_gives_the_same_logits_and_gradients(model):
    gradients = []
    for only in (False, True):
        model.zero_grad()
        outputs = model.train()(IMAGES, partner_index=PARTNERS, class_tokens_only=only)
        sum(outputs[f"{b}_logits"].square().sum() for b in ("sa", "glca", "pwca")).backward()
        gradients.append(({n: p.grad.clone() for n, p in model.named_parameters()}, outputs))
    (full, all_rows), (short, one_row) = gradients
    assert one_row["sa_features"].shape[1] == one_row["pwca_features"].shape[1] == 1
    for branch in ("sa", "glca", "pwca"):
        torch.testing.assert_close(one_row[f"{branch}_logits"], all_rows[f"{branch}_logits"])
    for name, gradient in full.items():
        torch.testing.assert_close(short[name], gradient, rtol=1e-4, atol=1e-5)


def test_evaluation_ignores_pairs_and_reid_combines(model):
    outputs = model.eval()(IMAGES, IMAGES)
    assert set(outputs) == {"sa_logits", "glca_logits", "sa_features", "glca_features"}
    reid = build(**(PAPER if model.layout == "paper" else REFERENCE), task_type="reid").eval()
    combined = reid(IMAGES)["combined_features"]
    assert combined.shape == (3, 128)
    torch.testing.assert_close(reid.extract_features(IMAGES), combined)
    assert {"sa_head.0.weight", "sa_head.1.running_mean", "sa_head.3.bias"} <= set(reid.state_dict())


def test_attention_maps(model):
    maps = model.eval().get_attention_maps(IMAGES)
    rows = maps["accumulated_attention"].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    found = maps["glca_attention_maps"]["glca_block_0"]
    assert found["attention_map"].shape[2] == found["selected_indices"].shape[1] == 2
    torch.testing.assert_close(found["attention_map"].sum(-1), torch.ones(found["attention_map"].shape[:3]))


def test_parameter_groups_and_freezing(model):
    groups = model.get_parameter_groups(1e-4, 1e-3)
    assert [g["lr"] for g in groups] == [1e-4, 1e-3]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    model.freeze_backbone()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.freeze_backbone(False)
    assert all(p.requires_grad for p in model.parameters())


def test_init_leaves_the_backbone_alone():
    import timm

    torch.manual_seed(0)
    own = timm.create_model("test_vit", num_classes=0, img_size=64).state_dict()
    ours = build(**REFERENCE).backbone.model.state_dict()
    assert all(torch.equal(own[name], ours[name]) for name in own)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (
            {"top_k_ratio": 0.0, "num_classes": 0},
            ["top_k_ratio must be in (0, 1], got 0.0", "num_classes must be an integer >= 1, got 0"],
        ),
        ({"top_k_ratio": 1.5}, ["top_k_ratio must be in (0, 1], got 1.5"]),
        ({"layout": "other"}, ["layout must be 'reference' or 'paper', got 'other'"]),
        ({"num_heads": 7}, ["num_heads must be a divisor of the backbone's width, 64, got 7"]),
        ({"layout": "paper", "num_glca_blocks": -1}, ["num_glca_blocks must be an integer >= 0, got -1"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as caught:
        build(**(REFERENCE | kwargs))
    assert all(word in str(caught.value) for word in words)


def test_arguments_without_an_effect_are_said_unless_they_were_written_down(tmp_path):
    options = {"pretrained": False, "img_size": 32, "depth": 1}
    own = {"num_sa_blocks": 3, "num_pwca_blocks": 5, "embed_dim": 192, "num_heads": 4}
    with pytest.warns(UserWarning) as caught:
        model = DualAttentionModel("test_vit", 3, layout="paper", **own, **options)
    assert [str(w.message) for w in caught] == [
        "num_sa_blocks=3, num_pwca_blocks=5, embed_dim=192, num_heads=4 has no effect in layout='paper': the "
        "model has 1, 1, 64, 2"
    ]
    with pytest.warns(UserWarning, match=r"^num_pwca_blocks=5, embed_dim=192 has no effect in layout='refer"):
        DualAttentionModel("test_vit", 3, **own, **options)
    model.save_pretrained(tmp_path)
    DualAttentionModel.from_pretrained(tmp_path)  # a warning would be an error
    same = {"num_sa_blocks": 1, "num_pwca_blocks": 1, "embed_dim": 64, "num_heads": 2}
    DualAttentionModel("test_vit", 3, layout="paper", **same, **options)
    with pytest.raises(
        ValueError, match=r"num_pwca_blocks must be an integer .*; embed_dim must be an integer"
    ):
        DualAttentionModel("test_vit", 3, num_pwca_blocks="x", embed_dim=0, **options)


def test_bad_inputs(model):
    cases = [
        (dict(x=IMAGES[0]), r"x must be images \(B, 3, h, w\) .* got shape \(3, 64, 64\)"),
        (dict(x=IMAGES.to(torch.uint8)), "x must be floating point, got torch.uint8"),
        (dict(x=IMAGES, x_pair=IMAGES[:2]), "x_pair must have the shape of x"),
        (
            dict(x=IMAGES, x_pair=IMAGES, partner_index=PARTNERS),
            "x_pair must be None where partner_index is given",
        ),
        (dict(x=IMAGES, partner_index=torch.tensor([0, 1, 3])), "from 0 to 3"),
        (dict(x=IMAGES, partner_index=torch.tensor([0.0, 1, 2])), "int64"),
    ]
    for kwargs, words in cases:
        with pytest.raises(ValueError, match=words):
            model(**kwargs)
