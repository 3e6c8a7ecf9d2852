"""Select the weights of a checkpoint that fit a model with other classes or another image size."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

Grid = tuple[int, int]  # patches in height and width


def transferable(
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    arguments: Any,
    name: str,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return the weights that fit, with resampled position embeddings, and the names of all others.

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
    """A position embedding (1, N, C) resampled to the model's grid; None if there is nothing to resample."""
    value, owner = weights[key], _owner(modules, key)
    grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    shape = shape_of(value)
    if not key.endswith("pos_embed") or grid is None or own.dim() != 3 or not isinstance(shape, tuple):
        return None
    if len(shape) != 3 or shape[0] != 1 or shape[2] != own.shape[2]:
        return None
    new = (int(grid[0]), int(grid[1]))
    prefix = own.shape[1] - math.prod(new)  # the class token's position, if it has one
    patch = weights.get(key.removesuffix("pos_embed") + "patch_embed.proj.weight")
    old = _grid(shape[1] - prefix, new, patch, arguments)
    if old is None or old == new:
        return None
    return resample_abs_pos_embed(value, list(new), list(old), num_prefix_tokens=prefix)


def _owner(modules: Mapping[str, nn.Module], key: str) -> nn.Module | None:
    """The module that has the weight, also with a wrapper's prefix "module."."""
    path = key.rpartition(".")[0]
    return modules.get(path, modules.get(f"module.{path}"))


def _grid(patches: int, new: Grid, patch: Any, arguments: Any) -> Grid | None:
    """The checkpoint's grid: from its arguments if known, else a square, else shaped like the new one."""
    known_arguments = arguments if isinstance(arguments, Mapping) else {}
    size, stride = known_arguments.get("img_size"), known_arguments.get("patch_stride")
    size = [size, size] if isinstance(size, int) else size
    sides = size if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size) else ()
    shape = shape_of(patch)
    if len(sides) == 2 and isinstance(shape, tuple) and len(shape) == 4 and 0 not in shape:
        steps = (stride, stride) if isinstance(stride, int) and stride > 0 else shape[2:]
        known = (sides[0] - shape[2]) // steps[0] + 1, (sides[1] - shape[3]) // steps[1] + 1
        if math.prod(known) == patches:
            return known
    if patches == math.prod(new):
        return new
    square = math.isqrt(max(0, patches))
    height = math.isqrt(max(0, patches) * new[0] // new[1])
    for grid in ((square, square), (height, height * new[1] // new[0])):
        if math.prod(grid) == patches > 0:
            return grid
    return None
