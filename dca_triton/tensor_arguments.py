"""Rules for tensors, beside those of `arguments`: kind and shape first, then values row by row."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from .arguments import Rule

Kind = Literal["floating-point", "integer"]


def tensor(
    shape: str, dtypes: Collection[torch.dtype] = (), device: torch.device | None = None, **sizes: int
) -> Rule:
    """A dense tensor of a shape such as "(B, 3, h, w)".

    A size is a number, or a name for any size of at least 1; equal names are equal sizes. `sizes` fixes named
    sizes. `dtypes` and `device` are what is allowed, everything by default.
    """
    names = [name.strip() for name in shape.strip("()").split(",") if name.strip()]

    def fits(v: Any) -> bool:
        if not isinstance(v, Tensor) or v.is_nested or v.layout != torch.strided:
            return False
        if v.dim() != len(names) or (dtypes and v.dtype not in dtypes):
            return False
        known = dict(sizes)
        for name, size in zip(names, v.shape, strict=True):
            if size < 1 or size != (int(name) if name.isdigit() else known.setdefault(name, size)):
                return False
        return device is None or v.device == device

    kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    words = f"a dense {kinds} tensor {shape}".replace("  ", " ")
    fixed = "".join(f", {name} = {size}" for name, size in sizes.items())
    return fits, f"{words} of sizes >= 1{fixed}" + ("" if device is None else f", on {device}")


def tensor_faults(name: str, value: Any, kind: Kind, *shape: int | str) -> list[str]:
    """What is wrong with a tensor's kind and shape; a shape's letter stands for any size of at least 1."""
    fits = (
        isinstance(value, Tensor)
        and (value.is_floating_point() if kind == "floating-point" else _is_integer(value))
        and len(value.shape) == len(shape)
        and all(
            size > 0 if isinstance(want, str) else size == want
            for size, want in zip(value.shape, shape, strict=True)
        )
    )
    words = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    return [] if fits else [f"{name} must be {kind} {words}, got {describe(value)}"]


def row_faults(name: str, rule: str, bad: Tensor, got: str = "other values") -> list[str]:
    """What is wrong with the values of a tensor in its rows `bad` (S,) bool; the first five are named."""
    rows = bad.nonzero().flatten().tolist()
    if not rows:
        return []
    some = f"{', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"
    return [f"{name} must be {rule}, got {got} in {len(rows)} of {len(bad)} rows ({some})"]


def describe(value: Any) -> str:
    """Dtype and shape of a tensor, the type of anything else."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
