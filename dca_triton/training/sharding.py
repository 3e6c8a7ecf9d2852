"""Gather and shard weights and optimizer states (FSDP2)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..arguments import raise_faults, shown
from ..tensor_arguments import tensor_violations
from .run_settings import differences

# Of an optimizer's groups: what decides a step, apart from the learning rate, which follows the schedule.
STEP_SETTINGS = (
    "betas",
    "eps",
    "weight_decay",
    "lr_scale",
    "momentum",
    "dampening",
    "nesterov",
    "amsgrad",
    "maximize",
)


def whole(tree: Any) -> Any:
    """Gather the shards of every tensor in a state dict; every process must call this."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def sharded_like(model: nn.Module, weights: Any) -> Any:
    """Shard whole weights as the model's are."""
    if not isinstance(weights, Mapping):
        return weights  # `load_weights` refuses it
    own = model.state_dict()
    return {key: _sharded(value, own.get(key)) for key, value in weights.items()}


def shard_parameters(module: nn.Module, like: nn.Module) -> None:
    """Shard the parameters of `module`, a whole copy of `like`, in the same way as those of `like`."""
    for (name, own), other in zip(list(module.named_parameters()), like.parameters(), strict=True):
        path, _, leaf = name.rpartition(".")
        shard = nn.Parameter(_sharded(own.detach(), other), requires_grad=own.requires_grad)
        module.get_submodule(path).register_parameter(leaf, shard)


def is_sharded(model: nn.Module) -> bool:
    """True if any parameter is sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@torch.no_grad()
def swap_weights(model: nn.Module, other: nn.Module) -> None:
    """Exchange all values in the state dicts of a model and a copy of it."""
    for mine, its in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        kept = mine.clone()
        mine.copy_(its)
        its.copy_(kept)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimizer's whole state and shard it as its parameters are; its groups keep their settings.

    Raises:
        ValueError: `state` belongs to another kind of optimizer or to other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    raise_faults(_faults(state, optimizer, parameters))
    optimizer.load_state_dict(
        {"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = _sharded(value, parameter)


def _faults(state: Any, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> list[str]:
    name = "optimizer_state_dict"
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        got = shown(list(state)) if isinstance(state, dict) else f"a {type(state).__name__}"
        return [f"{name} must be a dict with state and param_groups, got {got}"]
    groups, slots = state["param_groups"], state["state"]
    if not isinstance(slots, dict) or not isinstance(groups, list) or not all(map(_is_group, groups)):
        return [f"{name} must hold a dict as state and a list of dicts with params as param_groups"]
    sizes = [len(group["params"]) for group in groups]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    faults = []
    if sizes != expected:
        faults.append(f"{name} must have groups of {expected} trainable parameters, got {sizes}")
    for number, (found, own) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        known = [key for key in STEP_SETTINGS if key in found and key in own]
        for key in known:
            faults += differences(f"{name}.param_groups[{number}].{key}", own[key], found[key])
    adam = isinstance(optimizer, torch.optim.Adam)
    names = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    for number, values in slots.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            faults.append(f"{name} must number parameters from 0, got {number!r}")
        elif not isinstance(values, dict) or set(values) != names:
            got = shown(list(values)) if isinstance(values, dict) else f"a {type(values).__name__}"
            faults.append(f"{name} must hold {', '.join(sorted(names))} of parameter {number}, got {got}")
        else:
            shape = ", ".join(map(str, parameters[number].shape))
            for slot in sorted(names):
                key = f"{slot} of parameter {number} in {name}"
                rule = f"floating-point ({'' if slot == 'step' else shape})"
                faults += tensor_violations({key: values[slot]}, {key: rule})
    return faults


def _is_group(group: Any) -> bool:
    return isinstance(group, dict) and isinstance(group.get("params"), list)


def _sharded(value: Any, like: Any) -> Any:
    if isinstance(like, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
