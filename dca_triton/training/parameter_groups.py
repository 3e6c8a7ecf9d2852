"""The parameters of a model in timm's groups: with and without decay, by layer, biases apart."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor

from ..model import DualAttentionModel

TIMM = "backbone.model."  # the timm model within ours
Group = dict[str, Any]  # params, weight_decay and lr_scale, which timm's schedules multiply the rate by


def parameter_groups(
    model: DualAttentionModel,
    weight_decay: float,
    *,
    weight_decay_exclude_1d: bool = False,
    layer_decay: float | None = None,
    bias_lr_scale: float = 1.0,
) -> list[Group]:
    """The trainable parameters of `model`, each in one group; by default all in one group.

    Args:
        model: The model to train.
        weight_decay: Of the groups that decay.
        weight_decay_exclude_1d: No decay on norms and biases, nor on what the backbone's `no_weight_decay`
            names, such as positions and tokens, nor on the embeddings of cameras and views.
        layer_decay: The learning rate of a layer is this times that of the layer above it (BEiT). GLCA,
            heads, the embeddings of cameras and views, and all else outside the backbone have the full rate.
        bias_lr_scale: Factor of the learning rate of all biases (TransReID: 2).
    """
    undecayed = no_weight_decay(model) if weight_decay_exclude_1d else set()
    groups: list[Group]
    if layer_decay is not None:
        matcher = layer_matcher(model)
        layered: Any = SimpleNamespace(
            named_parameters=model.named_parameters, group_matcher=lambda coarse: matcher
        )
        groups = param_groups_layer_decay(
            layered,
            weight_decay,
            no_weight_decay_list=undecayed,
            weight_decay_exclude_1d=weight_decay_exclude_1d,
            layer_decay=layer_decay,
        )
    elif weight_decay_exclude_1d:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=undecayed)
    else:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    return groups if bias_lr_scale == 1 else _biases_apart(model, groups, bias_lr_scale)


def no_weight_decay(model: DualAttentionModel) -> set[str]:
    """Names of the parameters that the backbone's authors do not decay, as timm has them, of the same ones in
    GLCA's copies of the last block, and of SIE's.
    """
    names = {TIMM + name for name in getattr(model.backbone.model, "no_weight_decay", set)()}
    if model.layout == "paper":
        last = model.backbone.blocks[-1]
        block = next(name for name, module in model.named_modules() if module is last)
        within = [name.removeprefix(block) for name in names if name.startswith(f"{block}.")]
        names |= {f"glca_blocks.{i}{name}" for i in range(len(model.glca_blocks)) for name in within}
    return names | {"sie.table"}


def layer_matcher(model: DualAttentionModel) -> Callable[[str], float]:
    """timm's group matcher of the whole model: the layer of a parameter by its name, the last if on top."""
    backbone = model.backbone.model
    layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    return lambda name: layers.get(name.removeprefix(TIMM), math.inf)


def _biases_apart(model: DualAttentionModel, groups: list[Group], scale: float) -> list[Group]:
    biases = {id(parameter) for name, parameter in model.named_parameters() if name.endswith(".bias")}
    apart = []
    for group in groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(scale if id(parameter) in biases else 1.0, []).append(parameter)
        for factor, parameters in parts.items():
            lr_scale = factor * group.get("lr_scale", 1.0)
            apart.append(group | {"params": parameters, "lr_scale": lr_scale})
    return apart
