"""Select the weights of a checkpoint that fit a model with other classes or another image size."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .positions import Grid, grid_of, resampled_embedding, resampled_table


def transferable(
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    arguments: Any,
    name: str,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return the weights that fit, with resampled positions, and the names of all others.

    Args:
        model: The model that takes them.
        own: Its state dict, without the prefixes of wrappers.
        weights: The checkpoint's state dict, likewise.
        arguments: The constructor's arguments of the checkpoint's model, if it holds them.
        name: Name of the checkpoint, for the error.

    Returns:
        The weights, and the lists "fresh", "resampled" and "ignored".

    Raises:
        ValueError: No weight of the backbone (of the model, if it has no backbone) fits.
    """
    modules = {key.replace("_orig_mod.", ""): module for key, module in model.named_modules()}
    taken, resampled = {}, []
    for key, value in own.items():
        if key not in weights:
            continue
        resized = _resampled(modules, key, value, weights, arguments)
        if resized is not None:
            taken[key] = resized
            resampled.append(key)
        elif shape_of(weights[key]) == shape_of(value):
            taken[key] = weights[key]
    core = [key for key in own if key.startswith("backbone.")] or list(own)
    if not any(key in taken for key in core):
        raise ValueError(
            f"{name} does not fit the model: at least one weight of the backbone must have the same name and "
            f"shape, got none of {len(core)}"
        )
    report = {
        "fresh": [key for key in own if key not in taken],
        "resampled": resampled,
        "ignored": [key for key in weights if key not in own],
    }
    return taken, report


def shape_of(value: Any) -> tuple[int, ...] | str:
    """The shape of a dense real tensor; of anything else what it is, which is not the same as a shape.

    Copying some of these would fail half-way; integers in the place of weights would be numbers of a code.
    """
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        return f"a {value.layout} {value.dtype} tensor on {value.device}"
    shape = tuple(value.shape)
    if value.is_floating_point():
        return shape
    return f"a {'bool' if value.dtype == torch.bool else 'integer'} tensor {shape}"


def _resampled(
    modules: Mapping[str, nn.Module], key: str, own: Tensor, weights: Mapping[str, Any], arguments: Any
) -> Tensor | None:
    """Positions resampled to the model's grid or window; None if there is nothing to resample."""
    value, owner = weights[key], _owner(modules, key)
    shape = shape_of(value)
    if not isinstance(shape, tuple) or len(shape) != own.dim() or shape[-1] != own.shape[-1]:
        return None
    grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    if key.endswith("pos_embed") and grid is not None and own.dim() == 3 and shape[0] == 1:
        new = grid[0], grid[1]
        prefix = own.shape[1] - math.prod(new)  # the class token's position, if it has one
        patches = shape[1] - prefix
        height = math.isqrt(max(0, patches) * new[0] // new[1])
        alike = height, height * new[1] // new[0]  # of the model's shape
        old = grid_of(patches, _known_grid(weights, arguments), new) or grid_of(patches, alike)
        return resampled_embedding(value, prefix, old, new)
    window = getattr(owner, "window_size", None)
    if key.endswith("relative_position_bias_table") and window is not None and own.dim() == 2:
        return resampled_table(value, len(own), _known_grid(weights, arguments), (window[0], window[1]))
    return None


def _owner(modules: Mapping[str, nn.Module], key: str) -> nn.Module | None:
    """The module that has the weight, also with a wrapper's prefix "module."."""
    path = key.rpartition(".")[0]
    return modules.get(path, modules.get(f"module.{path}"))


def _known_grid(weights: Mapping[str, Any], arguments: Any) -> Grid | None:
    """The checkpoint's grid of patches, from the arguments of its model and the kernel of its patches.

    It is the window of a BEiT, too.
    """
    known_arguments = arguments if isinstance(arguments, Mapping) else {}
    size, stride = known_arguments.get("img_size"), known_arguments.get("patch_stride")
    size = [size, size] if isinstance(size, int) else size
    sides = size if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size) else ()
    patch = next((value for key, value in weights.items() if key.endswith("patch_embed.proj.weight")), None)
    shape = shape_of(patch)
    if len(sides) != 2 or not isinstance(shape, tuple) or len(shape) != 4 or 0 in shape:
        return None
    steps = (stride, stride) if isinstance(stride, int) and stride > 0 else shape[2:]
    return (sides[0] - shape[2]) // steps[0] + 1, (sides[1] - shape[3]) // steps[1] + 1
