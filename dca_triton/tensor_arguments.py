"""Rules for tensors, as tables: name -> "dtype (shape)", and sentences about rows with wrong values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .arguments import shown


def tensor_violations(
    tensors: Mapping[str, Any],
    rules: Mapping[str, str],
    sizes: Mapping[str, int] | None = None,
    same_device: bool = False,
) -> list[str]:
    """Return "`name` must be <rule>, got <value>" for each tensor that breaks its rule.

    An example of a rule is "int64 or int32 (B, 1 + R)". The dtype is "floating-point", "integer" or names of
    dtypes. A size is a number, or a name for any size >= 1. Equal names are equal sizes in the whole table.

    Args:
        tensors: Values by name; only those with a rule are checked.
        rules: A rule for each name to check, in the order of the sentences.
        sizes: Named sizes that are already known.
        same_device: Require all tensors to be on the device of the first.
    """
    # Sizes are formatted only in sentences: formatting one would pin it in a compiled graph.
    known: dict[str, int] = dict(sizes or {})
    faults: list[str] = []
    first: tuple[str, Tensor] | None = None
    for name, rule in rules.items():
        value = tensors[name]
        dtypes, _, shape = rule.partition(" (")
        names = [size.strip() for size in shape.rstrip(")").split(",") if size.strip()]
        if not (_is_dense(value) and _has_dtype(value, dtypes) and _has_shape(value, names, known)):
            faults.append(f"{name} must be {_words(dtypes, names, known)}, got {shown(value)}")
            continue
        known.update(zip(names, value.shape, strict=True))
        first = first or (name, value)
        if same_device and value.device != first[1].device:
            faults.append(
                f"{name} must be on the device of {first[0]}, {first[1].device}, got {value.device}"
            )
    return faults


def row_violations(name: str, rule: str, bad: Tensor, got: str = "other values") -> list[str]:
    """Return "`name` must be <rule>, got ..." if any row is `bad` (S,) bool. It names up to five rows."""
    rows = bad.nonzero().flatten().tolist()
    if not rows:
        return []
    some = f"{', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"
    return [f"{name} must be {rule}, got {got} in {len(rows)} of {len(bad)} rows ({some})"]


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided


def _has_dtype(tensor: Tensor, dtypes: str) -> bool:
    if dtypes == "floating-point":
        return tensor.is_floating_point()
    if dtypes == "integer":
        return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return tensor.dtype in [getattr(torch, dtype) for dtype in dtypes.split(" or ")]


def _has_shape(tensor: Tensor, names: list[str], known: Mapping[str, int]) -> bool:
    if tensor.dim() != len(names):
        return False
    known = {**known, **{name: int(name) for name in names if name.isdigit()}}
    for name, size in zip(names, tensor.shape, strict=True):
        if size != known[name] if name in known else size < 1:
            return False
        known[name] = size
    return True


def _words(dtypes: str, names: list[str], known: Mapping[str, int]) -> str:
    shape = f"({', '.join(names)}{',' * (len(names) == 1)})"
    named = list(dict.fromkeys(name for name in names if not name.isdigit()))
    limits = [f"{name} = {known[name]}" for name in named if name in known]
    limits += ["sizes >= 1"] * any(name not in known for name in named)
    return f"a dense {dtypes} tensor {shape}" + (f" with {', '.join(limits)}" if limits else "")
