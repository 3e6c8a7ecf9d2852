"""Checks of the arguments of the public operations. Faults read "`name` must be <rule>, got <value>".

They check the structure (types, shapes, dtypes, devices), and the values that can be read, which are those on
a CPU. Once the structure is sound, the values on a GPU are asserted (`values`).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..arguments import integer, number, optional, raise_faults, violations
from .attention import Attention
from .values import INTEGERS, Range, start_row_faults

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE_FLOATS = (torch.float32, torch.float64)
SCALE = optional(number(lambda v: v >= 0, "a finite number >= 0"))


def check_tensors(needed: Mapping[str, object], **optional: object) -> None:
    """Raise ValueError for every argument that is not a dense tensor; those of `optional` may be None."""
    raise_faults(
        f"{name} must be a dense tensor{' or None' * (name in optional)}, got {_kind(value)}"
        for name, value in (*needed.items(), *optional.items())
        if not _is_dense(value) and (value is not None or name in needed)
    )


def check_sequences(layers: Mapping[str, object]) -> None:
    """Raise ValueError for every argument that is not a list or tuple of tensors, one for each layer."""
    raise_faults(
        f"{name} must be a list or tuple of tensors, one for each layer, got {type(value).__name__}"
        for name, value in layers.items()
        if not isinstance(value, list | tuple)
    )


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
    pool = a.partner_keys
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
        faults += start_row_faults(row)
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


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "a nested tensor" if value.is_nested else f"layout {value.layout}"


def _dims(shape: str) -> int:
    """The number of dimensions of a shape as messages write it: 1 for "(B,)", 2 for "(B, R)"."""
    return shape.count(", ") + 1


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
