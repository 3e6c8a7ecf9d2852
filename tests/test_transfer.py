"""Weights of other classes, sizes and layouts: matching weights are loaded, and all others are reported."""

import pytest
import torch
from small_training import small_model
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm_streams import narrow_model, randomized
from torch import nn

from dca_triton.checkpoint import load_weights, save_checkpoint
from dca_triton.model import DualAttentionModel

POSITIONS = "backbone.model.pos_embed"


def model_of(classes: int = 4, seed: int = 0, **options) -> DualAttentionModel:
    torch.manual_seed(seed)
    arguments = {"img_size": 16, "patch_size": 8, "depth": 2, "num_sa_blocks": 1, "num_heads": 4}
    return DualAttentionModel(
        "test_vit", classes, **({"layout": "paper", "pretrained": False} | arguments | options)
    )


def transferred(source: DualAttentionModel, model: nn.Module, **more) -> dict:
    """Transfer, and check that all that is reported neither fresh nor resampled was loaded."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value.clone() for key, value in source.state_dict().items()}
    found = load_weights(model, {"model_state_dict": weights, **more}, transfer=True)
    for key, value in model.state_dict().items():
        if key in found["fresh"]:
            assert torch.equal(value, before[key])
        elif key not in found["resampled"]:
            assert torch.equal(value, weights[key])
    assert set(weights) - set(before) == set(found["ignored"])
    return found


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_heads_of_other_classes_start_fresh(task):
    source, model = model_of(4, 1, task_type=task), model_of(6, 2, task_type=task)
    found = transferred(source, model, epoch=3)
    last = ".3" if task == "reid" else ""
    assert found == {
        "epoch": 3,
        "fresh": [
            f"{branch}_head{last}.{what}" for branch in ("sa", "glca", "pwca") for what in ("weight", "bias")
        ],
        "resampled": [],
        "ignored": [],
    }


def test_another_task_and_the_same_model():
    found = transferred(model_of(task_type="fgvc", seed=1), model_of(task_type="reid"))
    assert "sa_head.0.weight" in found["fresh"] and "sa_head.weight" in found["ignored"]
    assert not any(name.startswith(("backbone", "glca_blocks")) for name in found["fresh"])
    assert transferred(model_of(seed=1), model_of()) == {"fresh": [], "resampled": [], "ignored": []}


@pytest.mark.parametrize(
    ("old", "new", "known"),
    [
        (16, 32, False),
        (32, 16, True),
        (16, (32, 16), False),
        ((32, 16), (64, 32), False),  # not a square: of the new grid's shape
        ((32, 16), 32, True),
        ((64, 16), 32, True),  # as many patches in another order
        ((16, 64), (64, 16), True),
    ],
)
def test_positions_are_resampled(old, new, known):
    source, model = model_of(img_size=old, seed=1), model_of(img_size=new)
    more = {"model_arguments": {"img_size": list(old) if isinstance(old, tuple) else old}} if known else {}
    found = transferred(source, model, **more)
    assert found["resampled"] == [POSITIONS] and found["fresh"] == []
    grids = [[side // 8 for side in ((s, s) if isinstance(s, int) else s)] for s in (old, new)]
    expected = resample_abs_pos_embed(source.state_dict()[POSITIONS], grids[1], grids[0], num_prefix_tokens=1)
    assert torch.equal(model.state_dict()[POSITIONS], expected)
    assert model.eval()(torch.zeros(1, 3, *(8 * side for side in grids[1])))["sa_logits"].isfinite().all()


def test_positions_of_an_unknown_grid_start_fresh():
    found = transferred(model_of(img_size=(48, 8), seed=1), model_of(img_size=32))  # 6 patches
    assert found["fresh"] == [POSITIONS] and found["resampled"] == []


@pytest.mark.parametrize(
    "arguments", [None, 3, [], {}, {"img_size": None}, {"img_size": ["a", 1]}, {"img_size": 7}]
)
def test_arguments_that_say_nothing(arguments):
    found = transferred(model_of(seed=1), model_of(img_size=32), model_arguments=arguments)
    assert found["resampled"] == [POSITIONS]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_into_a_wrapped_model(prefix, tmp_path):
    source, model = model_of(seed=1), model_of(5, img_size=32)
    weights = {prefix + key: value for key, value in source.state_dict().items()}
    save_checkpoint(tmp_path / "a.pt", {"state_dict": weights})
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        found = load_weights(wrapped, tmp_path / "a.pt", transfer=True)
        assert found["resampled"] == [POSITIONS] and "sa_head.weight" in found["fresh"]


def test_another_backbone_is_refused():
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for weights in ({"x": torch.ones(2)}, {f"other.{k}": v for k, v in before.items()}, {}):
        with pytest.raises(
            ValueError, match="does not fit the model: at least one weight of the backbone must"
        ):
            load_weights(model, weights, transfer=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_strict_is_the_rule():
    with pytest.raises(ValueError, match="6 of another shape"):
        load_weights(model_of(6), model_of(4).state_dict())


BEIT, SWIN, CAIT = "beitv2_base_patch16_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224"
TABLE = "relative_position_bias_table"
RESIZES = pytest.mark.filterwarnings("ignore::UserWarning")  # timm's function does
FAMILIES = {
    BEIT: {"embed_dim": 16, "depth": 1, "num_heads": 2, "use_shared_rel_pos_bias": True},
    SWIN: {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
    CAIT: {"embed_dim": 16, "depth": 1, "depth_token_only": 1, "num_heads": 2},
}


def model_of_family(name: str, grid: tuple[int, int], window: int | None = None) -> DualAttentionModel:
    patch = 4 if name == SWIN else 16
    sizes = FAMILIES[name] | ({} if window is None else {"window_size": window})
    branches = ("sa", "pwca") if name == SWIN else ("sa", "glca", "pwca")
    size = grid[0] * patch, grid[1] * patch
    return randomized(narrow_model(name, sizes, img_size=size, branches=branches))


def resized_by_timm(source: DualAttentionModel, key: str, model: DualAttentionModel) -> torch.Tensor:
    """A table of the source, by timm, which knows the window of both models."""
    path = key.rpartition(".")[0]
    new, old = model.get_submodule(path), source.get_submodule(path)
    shape = new.get_parameter(TABLE).shape
    return resize_rel_pos_bias_table(old.get_parameter(TABLE), new.window_size, shape, old.window_size)


def arguments_of(model: DualAttentionModel) -> dict:
    return {"model_arguments": {"img_size": list(model.backbone.model.patch_embed.img_size)}}


@RESIZES
@pytest.mark.parametrize(
    ("old", "new", "known"),
    [
        ((3, 3), (2, 4), False),  # a square
        ((2, 4), (3, 3), True),
        ((4, 2), (2, 4), True),  # as many in another order
    ],
)
def test_tables_of_a_beit_are_resampled_in_glca_too(old, new, known):
    source, model = model_of_family(BEIT, old), model_of_family(BEIT, new)
    found = transferred(source, model, **(arguments_of(source) if known else {}))
    tables = [key for key in model.state_dict() if key.endswith(TABLE)]
    assert found["resampled"] == tables and found["fresh"] == []
    assert [key.rpartition(".")[0] for key in tables] == [
        "backbone.model.rel_pos_bias",
        "backbone.model.blocks.0.attn",
        "glca_blocks.0.attn",
    ]
    for key in tables:
        assert torch.equal(model.state_dict()[key], resized_by_timm(source, key, model))


@RESIZES
def test_tables_of_a_swin_are_resampled():
    """To another window, and where a window shrinks to the grid of its stage."""
    source, model = model_of_family(SWIN, (8, 8), 4), model_of_family(SWIN, (12, 6), 6)
    found = transferred(source, model, **arguments_of(source))
    tables = [key for key in model.state_dict() if key.endswith(TABLE)]
    assert found["resampled"] == tables and found["fresh"] == []
    shapes = [model.state_dict()[key].shape for key in tables]
    assert shapes == [(11 * 11, 1), (11 * 5, 2)]
    for key in tables:
        assert torch.equal(model.state_dict()[key], resized_by_timm(source, key, model))


def test_tables_of_an_unknown_window_start_fresh():
    """Of 5 x 3 patches, or of a Swin's last stage, whose window no argument tells."""
    found = transferred(model_of_family(BEIT, (5, 3)), model_of_family(BEIT, (4, 4)))
    assert found["resampled"] == [] and [key for key in found["fresh"] if TABLE not in key] == []
    assert len(found["fresh"]) == 3
    source, model = model_of_family(SWIN, (8, 4), 4), model_of_family(SWIN, (8, 8), 4)
    found = transferred(source, model, **arguments_of(source))
    assert found["fresh"] == [f"backbone.model.layers.1.blocks.0.attn.{TABLE}"] and found["resampled"] == []


def test_tables_of_the_same_window_are_loaded_as_they_are():
    for name, grid, window in ((BEIT, (5, 3), None), (BEIT, (5, 13), None), (SWIN, (8, 4), 4)):
        source, model = model_of_family(name, grid, window), model_of_family(name, grid, window)
        for more in ({}, arguments_of(source)):
            found = transferred(source, model, **more)
            assert found["fresh"] == found["resampled"] == []


def test_positions_of_a_cait_are_resampled():
    source, model = model_of_family(CAIT, (2, 2)), model_of_family(CAIT, (3, 3))
    assert transferred(source, model)["resampled"] == [POSITIONS]
    expected = resample_abs_pos_embed(source.state_dict()[POSITIONS], [3, 3], [2, 2], num_prefix_tokens=0)
    assert torch.equal(model.state_dict()[POSITIONS], expected)
