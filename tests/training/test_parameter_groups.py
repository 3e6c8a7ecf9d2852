"""Parameter groups against those that timm makes of the bare backbone."""

import pytest
import timm
import torch
from small_training import small_model
from timm.optim import create_optimizer_v2

from dca_triton.training.parameter_groups import no_weight_decay, parameter_groups

Settings = dict[str, tuple[float, float]]  # learning-rate scale and decay by the parameter's name
DECAY = 0.05


def settings_of(model, groups) -> Settings:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group.get("lr_scale", 1.0), group.get("weight_decay", DECAY)))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found), "a parameter is in two groups"
    return dict(found)


def ours(model=None, **options) -> Settings:
    model = small_model(depth=3, **options.pop("sizes", {})) if model is None else model
    return settings_of(model, parameter_groups(model, DECAY, **options))


def timms(**options) -> Settings:
    """Of a plain vision transformer with a head of its own."""
    sizes = {"img_size": 16, "patch_size": 8, "depth": 3, "num_heads": 4, "num_classes": 4}
    model = timm.create_model("test_vit", **sizes)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=DECAY, **options)
    return settings_of(model, optimizer.param_groups)


def test_by_default_all_parameters_are_in_one_group_in_their_order():
    model = small_model()
    (group,) = parameter_groups(model, DECAY)
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


@pytest.mark.parametrize("layer_decay", [None, 0.65])
def test_decay_and_layers_are_timms(layer_decay):
    truth = timms(layer_decay=layer_decay)
    found = ours(weight_decay_exclude_1d=True, layer_decay=layer_decay)
    assert {name for name, (_, decay) in truth.items() if not decay} > {"pos_embed", "cls_token"}
    for name, expected in truth.items():
        for own in [name.replace("head", f"{branch}_head") for branch in ("sa", "glca", "pwca")]:
            own = own if name.startswith("head") else f"backbone.model.{name}"
            assert found[own] == pytest.approx(expected), name
    assert found["glca_blocks.0.norm1.weight"] == (1.0, 0.0)
    assert found["glca_blocks.0.mlp.fc1.weight"] == (1.0, DECAY)
    assert len(set(scale for scale, _ in found.values())) == (1 if layer_decay is None else 5)


def test_layers_alone_leave_the_decay_as_it_is():
    found = ours(layer_decay=0.5)
    assert {decay for _, decay in found.values()} == {DECAY}
    assert found["backbone.model.pos_embed"][0] == 0.5**4
    assert found["backbone.model.blocks.0.attn.qkv.bias"][0] == 0.5**3


def test_own_blocks_of_the_reference_are_on_top():
    found = ours(layer_decay=0.5, sizes={"layout": "reference"})
    own = [scale for name, (scale, _) in found.items() if not name.startswith("backbone.")]
    assert own and set(own) == {1.0}
    assert found["backbone.model.blocks.2.norm1.weight"][0] == 0.5


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("exclude", [False, True])
def test_biases_have_a_rate_of_their_own(layer_decay, exclude):
    options = {"layer_decay": layer_decay, "weight_decay_exclude_1d": exclude}
    plain, scaled = ours(**options), ours(**options, bias_lr_scale=2.0)
    assert set(plain) == set(scaled)
    for name, (scale, decay) in plain.items():
        factor = 2.0 if name.endswith(".bias") else 1.0
        assert scaled[name] == (factor * scale, decay)


@pytest.mark.parametrize("options", [{}, {"weight_decay_exclude_1d": True}, {"layer_decay": 0.5}])
def test_frozen_parameters_are_in_no_group(options):
    model = small_model()
    model.freeze_backbone()
    found = ours(model, **options)
    assert found and not any(name.startswith("backbone.") for name in found)


def test_a_backbone_without_a_list_decays_everything_of_more_dimensions():
    model = small_model()
    assert no_weight_decay(model) >= {"backbone.model.pos_embed", "backbone.model.cls_token"}
    model.backbone.model.no_weight_decay = set
    found = ours(model, weight_decay_exclude_1d=True)
    assert found["backbone.model.pos_embed"] == (1.0, DECAY)
    assert all(found[name][1] == DECAY * (p.ndim > 1) for name, p in model.named_parameters())


def test_groups_without_decay_hold_every_parameter():
    model = small_model()
    groups = parameter_groups(model, 0.0, weight_decay_exclude_1d=True)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert torch.optim.SGD(groups, lr=1.0).param_groups
