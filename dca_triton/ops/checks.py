"""Checks of the arguments of the public operations. Faults read "`name` must be <rule>, got <value>".

Structure and values are checked in two phases. The functions that return faults check the structure (types,
shapes, dtypes, devices), and the values that can be read, which are those on a CPU. The functions called
`assert_...` check the values on a GPU once the structure is sound: they queue an assertion, which costs no
host sync.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import integer, number, optional, raise_faults, violations
from ..tensor_arguments import row_violations
from .attention import Attention

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE_FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
SCALE = optional(number(lambda v: v >= 0, "a finite number >= 0"))


class Range(NamedTuple):
    """A rule for values: they must be in [low, high)."""

    name: str
    values: Tensor
    low: int
    high: int

    def faults(self) -> list[str]:
        """The fault of values that can be read; an index of another dtype has other faults."""
        if not _readable(self.values) or self.values.dtype not in INTEGERS or self.values.numel() == 0:
            return []
        smallest, largest = (int(x) for x in self.values.aminmax())
        if self.low <= smallest and largest < self.high:
            return []
        rule = f"in [{self.low}, {self.high})"
        return [f"{self.name} must hold values {rule}, got values from {smallest} to {largest}"]

    def assert_values(self) -> None:
        """Queue an assertion about values that cannot be read here."""
        if _has_unread_values(self.values):
            # `high` in the message would pin the batch size of a compiled graph.
            holds = ((self.values >= self.low) & (self.values < self.high)).all()
            torch._assert_async(holds, f"{self.name} must hold values >= {self.low} and below its limit")


def check_tensors(needed: Mapping[str, object], **optional: object) -> None:
    """Raise ValueError for every argument that is not a dense tensor; those of `optional` may be None."""
    arguments = {**needed, **{name: value for name, value in optional.items() if value is not None}}
    faults = []
    for name, value in arguments.items():
        rule = f"a dense tensor{' or None' * (name in optional)}"
        if not isinstance(value, Tensor):
            faults.append(f"{name} must be {rule}, got {type(value).__name__}")
        elif value.is_nested or value.layout != torch.strided:
            kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
            faults.append(f"{name} must be {rule}, got {kind}")
    raise_faults(faults)


def check_sequences(layers: Mapping[str, object]) -> None:
    """Raise ValueError for every argument that is not a list or tuple of tensors, one for each layer."""
    raise_faults(
        f"{name} must be a list or tuple of tensors, one for each layer, got {type(value).__name__}"
        for name, value in layers.items()
        if not isinstance(value, list | tuple)
    )


def check_range(name: str, index: Tensor, low: int, high: int) -> None:
    """Raise ValueError unless all values are in [low, high); on a GPU, assert it without a host sync."""
    values = Range(name, index, low, high)
    raise_faults(values.faults())
    values.assert_values()


def check_rows(name: str, rule: str, bad: Tensor) -> None:
    """Raise ValueError if a row is `bad` (B,) bool; on a GPU, assert it without a host sync."""
    if _readable(bad):
        raise_faults(row_violations(name, rule, bad))
    if _has_unread_values(bad):
        torch._assert_async(~bad.any(), f"{name} must be {rule}")


def pair_attention(a: Attention) -> list[str]:
    faults = _attention_faults(a)
    if (a.partner_k is None) != (a.partner_v is None):
        missing, other = ("k", "v") if a.partner_k is None else ("v", "k")
        faults.append(f"partner_{missing} must be given with partner_{other}, got None")
    if a.partner_k is not None and a.pairs is None:
        faults.append("partner_index must be given with partner_k, got None")
    for name, x in (("partner_k", a.partner_k), ("partner_v", a.partner_v)):
        if x is not None:
            faults += _tensor_faults(name, x, FLOATS, "(B', N', H, D)", like=a.q)
            if x.dim() == 4 == a.q.dim() and x.shape[2:] != a.q.shape[2:]:
                H, D = a.q.shape[2:]
                faults.append(f"{name} must have q's H, D = {H}, {D}, got shape {_shape(x)}")
    if a.partner_k is not None and a.partner_v is not None and a.partner_k.shape != a.partner_v.shape:
        faults.append(
            f"partner_v must have partner_k's shape {_shape(a.partner_k)}, got {_shape(a.partner_v)}"
        )
    if a.bias is not None:
        faults += _bias_faults("bias", a.bias, a.q, a.k, "(B, H, M, N)")
        if a.partner_k is not None and a.partner_k.dim() == a.k.dim() == 4:
            own, others = a.k.shape[1], a.partner_k.shape[1]
            if own != others:
                faults.append(f"partner_k must have k's N = {own} where bias is given, got {others}")
    if a.partner_index is None:
        return faults
    faults += _index_faults("partner_index", a.partner_index, "(B,)", like=a.q)
    pool = a.k if a.partner_k is None else a.partner_k
    if pool.dim() == 0:
        return faults
    if isinstance(a.pairs, Tensor):
        return faults + Range("partner_index", a.pairs, -1, pool.shape[0]).faults()
    images = a.pairs.starts.numel() - 1 if a.pairs is not None else 0
    if images != pool.shape[0]:
        faults.append(f"partner_index must be made for B' = {pool.shape[0]} images, got one for {images}")
    return faults


def local_attention(a: Attention) -> list[str]:
    faults = _attention_faults(a)
    if a.rows is not None:
        faults += _index_faults("index", a.rows, "(B, R)", like=a.q)
        if a.q.dim() == 4:
            faults += Range("index", a.rows, 0, a.q.shape[1]).faults()
    return faults


def assert_indices(a: Attention) -> None:
    """Assert the values of the indices of a sound attention where they cannot be read."""
    if isinstance(a.pairs, Tensor):
        Range("partner_index", a.pairs, -1, a.num_images).assert_values()
    if a.rows is not None:
        Range("index", a.rows, 0, a.q.shape[1]).assert_values()


def pair_up(index: Tensor, images: int, unpaired: int) -> list[str]:
    faults = _index_faults("index", index, "(B,)")
    for name, size, least in (("images", images, 1), ("unpaired", unpaired, 0)):
        if not isinstance(size, torch.SymInt):  # a size of an exported graph
            faults += violations({name: size}, {name: integer(least)})
    if not faults and unpaired > index.shape[0]:
        faults.append(f"unpaired must be at most B = {index.shape[0]}, got {unpaired}")
    if faults:
        return faults
    leading = Range("index[:unpaired]", index[:unpaired], -1, 0)
    return [*Range("index", index, -1, images).faults(), *leading.faults()]


def rollout_row(
    qs: Sequence[Tensor],
    ks: Sequence[Tensor],
    lses: Sequence[Tensor],
    scale: float | None,
    row: Tensor | None,
    biases: Sequence[Tensor] | None = None,
) -> list[str]:
    if not len(qs) == len(ks) == len(lses) > 0:
        counts = f"{len(qs)}, {len(ks)} and {len(lses)}"
        return [f"qs, ks and lses must hold one tensor for each of at least 1 layer, got {counts}"]
    if biases is not None and len(biases) != len(qs):
        return [f"biases must hold one tensor for each of {len(qs)} layers, got {len(biases)}"]
    faults = []
    # The class token's row of the last layer is all that a rollout from it reads there.
    short = row is None and _is_class_row(qs[-1], ks[-1], lses[-1])
    q0 = ks[0] if short and len(qs) == 1 else qs[0]
    for layer, (q, k, lse) in enumerate(zip(qs, ks, lses, strict=True)):
        if short and layer == len(qs) - 1:
            q, lse = q.expand(-1, k.shape[1], -1, -1), lse.expand(-1, -1, k.shape[1])
        for name, x in ((f"qs[{layer}]", q), (f"ks[{layer}]", k)):
            faults += _tensor_faults(name, x, FLOATS, "(B, N, H, D)", like=q0, like_name="qs[0]")
            if x.shape != q0.shape:
                faults.append(f"{name} must have the shape of qs[0] {_shape(q0)}, got {_shape(x)}")
        faults += _tensor_faults(f"lses[{layer}]", lse, WIDE_FLOATS, "(B, H, N)")
        faults += _device_faults(f"lses[{layer}]", lse, q0, "qs[0]")
        if q0.dim() == 4 and lse.shape != (q0.shape[0], q0.shape[2], q0.shape[1]):
            expected = (q0.shape[0], q0.shape[2], q0.shape[1])
            faults.append(f"lses[{layer}] must have shape (B, H, N) = {expected}, got {_shape(lse)}")
    for layer, bias in enumerate(biases or []):
        faults += _bias_faults(f"biases[{layer}]", bias, qs[layer], ks[layer], "(B, H, N, N)")
    if row is not None:
        faults += _tensor_faults("row", row, WIDE_FLOATS, "(B, N)")
        faults += _device_faults("row", row, q0, "qs[0]")
        if row.shape != q0.shape[:2]:
            faults.append(f"row must have shape (B, N) = {tuple(q0.shape[:2])}, got {_shape(row)}")
        if row.is_floating_point() and _readable(row) and not _is_start_row(row):
            faults.append(f"{START_ROW}, got others")
    return faults + _scale_faults(scale)


def _bias_faults(name: str, bias: Tensor, q: Tensor, k: Tensor, shape: str) -> list[str]:
    faults = _tensor_faults(name, bias, FLOATS, shape, like=q)
    if bias.dim() == q.dim() == k.dim() == 4:
        B, M, H, _ = q.shape
        full = (B, H, M, k.shape[1])
        if any(size not in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
            faults.append(f"{name} must broadcast to {shape} = {full}, got shape {_shape(bias)}")
    return faults


def _is_class_row(q: Tensor, k: Tensor, lse: Tensor) -> bool:
    if not q.dim() == k.dim() == 4:
        return False
    B, _, H, D = k.shape
    return tuple(q.shape) == (B, 1, H, D) and tuple(lse.shape) == (B, H, 1)


START_ROW = "row must hold finite values >= 0"


def assert_start_row(row: Tensor) -> None:
    """Assert the values of a sound start row where they cannot be read."""
    if _has_unread_values(row):
        torch._assert_async(_is_start_row(row), START_ROW)


def _is_start_row(row: Tensor) -> Tensor:
    return ((row >= 0) & (row < float("inf"))).all()


def _attention_faults(a: Attention) -> list[str]:
    faults = _tensor_faults("q", a.q, FLOATS, "(B, M, H, D)")
    faults += _tensor_faults("k", a.k, FLOATS, "(B, N, H, D)", like=a.q)
    faults += _tensor_faults("v", a.v, FLOATS, "(B, N, H, D)", like=a.q)
    if a.q.dim() == a.k.dim() == 4 and (a.k.shape[0] != a.q.shape[0] or a.k.shape[2:] != a.q.shape[2:]):
        B, _, H, D = a.q.shape
        faults.append(f"k must have q's B, H, D = {B}, {H}, {D}, got shape {_shape(a.k)}")
    if a.k.shape != a.v.shape:
        faults.append(f"v must have k's shape {_shape(a.k)}, got {_shape(a.v)}")
    return faults + _scale_faults(a.scale)


def _index_faults(name: str, index: Tensor, shape: str, like: Tensor | None = None) -> list[str]:
    faults = _tensor_faults(name, index, INTEGERS, shape)
    if like is not None:
        faults += _device_faults(name, index, like, "q")
        if like.dim() and index.dim() == _dims(shape) and index.shape[0] != like.shape[0]:
            faults.append(f"{name} must have shape {shape} with q's B = {like.shape[0]}, got {_shape(index)}")
    return faults


def _tensor_faults(
    name: str,
    x: Tensor,
    dtypes: Iterable[torch.dtype],
    shape: str,
    like: Tensor | None = None,
    like_name: str = "q",
) -> list[str]:
    """Faults of dimensions, sizes and dtype; with `like`, the tensor must share its dtype and device."""
    faults = []
    if x.dim() != _dims(shape):
        faults.append(f"{name} must have shape {shape}, got {_shape(x)}")
    elif x.numel() == 0:
        faults.append(f"{name} must have sizes >= 1, got shape {_shape(x)}")
    if x.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        faults.append(f"{name} must be {names}, got {x.dtype}")
    elif like is not None and x.dtype != like.dtype:
        faults.append(f"{name} must have the dtype of {like_name}, {like.dtype}, got {x.dtype}")
    return faults if like is None else faults + _device_faults(name, x, like, like_name)


def _device_faults(name: str, x: Tensor, like: Tensor, like_name: str) -> list[str]:
    if x.device == like.device:
        return []
    return [f"{name} must be on the device of {like_name}, {like.device}, got {x.device}"]


def _scale_faults(scale: float | None) -> list[str]:
    return violations({"scale": scale}, {"scale": SCALE})


def _readable(x: Tensor) -> bool:
    """Whether reading a value costs no host sync and breaks no compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _has_unread_values(x: Tensor) -> bool:
    """Whether x has values that nobody has read; a tensor on the meta device has none."""
    return not _readable(x) and x.device.type != "meta"


def _dims(shape: str) -> int:
    """The number of dimensions of a shape as messages write it: 1 for "(B,)", 2 for "(B, R)"."""
    return shape.count(", ") + 1


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
