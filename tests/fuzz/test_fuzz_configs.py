"""Wild configurations: a model or trainer that works, or every reason in one error."""

import inspect
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from small_training import small_model

from dca_triton.model import DualAttentionModel
from dca_triton.model.checks import VALUE_RULES as OF_MODELS
from dca_triton.training import DualAttentionTrainer
from dca_triton.training.checks import ARGUMENT_RULES as OF_TRAINERS
from dca_triton.training.checks import check_arguments

fuzzed = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
wild = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([[], {}, (), [16, 16], (16, 16), (16, 0), b"x", 1 + 2j, math.nan, -0.0, "../x", "paper"]),
)
near = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        0.0,
        0.1,
        0.5,
        1.0,
        16,
        (16, 32),
        "fgvc",
        "reid",
        "paper",
        "reference",
        "local",
        "both",
        ["sa"],
        (1, 1),
        [3, 7],
    ]
)
DEFAULTS = {
    "backbone_name": "test_vit",
    "num_classes": 4,
    "task_type": "fgvc",
    "num_sa_blocks": 1,
    "num_glca_blocks": 1,
    "num_heads": 4,
    "top_k_ratio": 0.5,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "img_size": 16,
    "cache_attention_rollout": True,
    "head": None,
    "layout": "paper",
    "branches": ("sa", "glca", "pwca"),
    "sa_readout": "class",
    "glca_readout": "class",
    "pwca_blocks": None,
    "patch_stride": None,
    "cameras": (),
    "views": (),
    "sie_weight": 3.0,
    "pretrained": False,
    "backend": "torch",
}


def changes_of(*names: str):
    return st.dictionaries(st.sampled_from(names), wild | near, max_size=3)


def affordable(changes: dict) -> bool:
    """No model of a million blocks, and none that loads weights from the network."""
    large = [
        v for k, v in changes.items() if isinstance(v, int) and v > 40 and k not in ("num_heads", "seed")
    ]
    return not large and changes.get("pretrained") is not True and not isinstance(changes.get("depth"), float)


def outcome(call):
    try:
        return call()
    except ValueError as error:
        text = str(error)
        assert "\n" not in text, text
        assert any(words in text for words in (" must ", "cannot ", "does not fit")), text
        event("refused")
        return None


def works(model: DualAttentionModel) -> None:
    event("works")
    size = model.backbone.img_size
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, *size))["sa_logits"].shape == (2, model.num_classes)


@fuzzed
@given(changes_of(*sorted(OF_MODELS)))
def test_models(changes):
    assert set(DEFAULTS) == set(OF_MODELS)
    if affordable(changes):
        model = outcome(lambda: DualAttentionModel(**DEFAULTS | changes, patch_size=8, depth=1))
        broken = [name for name, value in changes.items() if not OF_MODELS[name][0](value)]
        assert model is None or not broken
        if model is not None:
            works(model)


@fuzzed
@given(changes_of(*sorted(OF_TRAINERS)))
def test_trainers(changes):
    broken = [name for name, value in changes.items() if not OF_TRAINERS[name][0](value)]
    signature = inspect.signature(DualAttentionTrainer).parameters
    defaults = {name: p.default for name, p in signature.items() if p.default is not p.empty}
    assert set(OF_TRAINERS) == set(defaults) - {"description"}
    arguments = defaults | {"evaluate": dict} | changes  # best_by needs it
    if not broken:
        check_arguments(arguments)
        return
    with pytest.raises(ValueError) as caught:
        check_arguments(arguments)
    assert all(f"{name} must be " in str(caught.value) for name in broken)
    assert str(caught.value).count(" must be ") == len(broken)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    small_model().save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())


@fuzzed
@given(changes=changes_of(*sorted(OF_MODELS), "depth", "checkpoint_path", "x"))
def test_config_files(changes, saved):
    """config.json of a saved model: what another machine wrote."""
    folder, config = saved
    changes = {k: v for k, v in changes.items() if not isinstance(v, bytes | complex)}
    if affordable(changes):
        (folder / "config.json").write_text(json.dumps(config | changes))
        model = outcome(lambda: DualAttentionModel.from_pretrained(folder))
        if model is not None:
            assert changes.get("checkpoint_path") is None and changes.get("x") is None
            works(model)
