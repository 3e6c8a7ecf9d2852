"""Weights of other classes, sizes and layouts: matching weights are loaded, and all others are reported."""

import pytest
import torch
from small_training import small_model
from timm.layers import resample_abs_pos_embed
from torch import nn

from dca_triton.checkpoint import load_weights, save_checkpoint
from dca_triton.model import DualAttentionModel

POSITIONS = "backbone.model.pos_embed"


def model_of(classes: int = 4, seed: int = 0, **options) -> DualAttentionModel:
    torch.manual_seed(seed)
    arguments = {"img_size": 16, "patch_size": 8, "depth": 2}
    if options.get("layout") == "reference":
        arguments |= {"num_sa_blocks": 1, "num_heads": 4}
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
