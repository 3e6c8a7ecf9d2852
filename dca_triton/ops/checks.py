"""What the public operations ask of their arguments: functions that return every fault, each as a clause."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..arguments import integer, number, optional, raise_faults, violations

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
SCALE = optional(number(lambda v: v >= 0, "a finite number >= 0"))


def check_tensors(needed: Mapping[str, object], **optional: object) -> None:
    """Raise ValueError for every argument that is not a dense tensor; those of `optional` may be None."""
    given = {**needed, **{name: value for name, value in optional.items() if value is not None}}
    faults = []
    for name, value in given.items():
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


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    images: int | None,
    scale: float | None,
) -> list[str]:
    """images: how many an index of `partners` was made for; None for one whose values are to be checked."""
    faults = _attention_faults(q, k, v, scale)
    if (partner_k is None) != (partner_v is None):
        missing, given = ("k", "v") if partner_k is None else ("v", "k")
        faults.append(f"partner_{missing} is None, partner_{given} is given; allowed are both or neither")
    if partner_k is not None and partner_index is None:
        faults.append("partner_k is given without partner_index, which says who is paired with whom")
    for name, tensor in (("partner_k", partner_k), ("partner_v", partner_v)):
        if tensor is not None:
            faults += _tensor_faults(name, tensor, FLOATS, 4, q)
            if tensor.dim() == 4 == q.dim() and tensor.shape[2:] != q.shape[2:]:
                faults.append(f"{name} is {_shape(tensor)}; H and D must be q's, {tuple(q.shape[2:])}")
    if partner_k is not None and partner_v is not None and partner_k.shape != partner_v.shape:
        faults.append(f"partner_v is {_shape(partner_v)}; allowed is partner_k's shape, {_shape(partner_k)}")
    if partner_index is None:
        return faults
    faults += _index_faults("partner_index", partner_index, 1, q)
    if partner_index.dim() == 1 and partner_index.shape != q.shape[:1]:
        faults.append(f"partner_index is {_shape(partner_index)}; allowed is (B,) = {tuple(q.shape[:1])}")
    of = k if partner_k is None else partner_k
    if images is None and of.dim():
        faults += _range_faults("partner_index", partner_index, -1, len(of), faults)
    elif of.dim() and images != len(of):
        faults.append(f"partner_index was made for {images} images; allowed is B' = {len(of)}")
    return faults


def partners(index: Tensor, images: int) -> list[str]:
    faults = _index_faults("index", index, 1, None)
    if not isinstance(images, torch.SymInt):  # a size of an exported graph
        faults += violations({"images": images}, {"images": integer(1)})
    return faults or _range_faults("index", index, -1, images, faults)


def local_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None, scale: float | None) -> list[str]:
    faults = _attention_faults(q, k, v, scale)
    if index is not None:
        faults += _index_faults("index", index, 2, q)
        if index.dim() == 2 and index.shape[:1] != q.shape[:1]:
            faults.append(f"index is {_shape(index)}; allowed is (B, R) with (B,) = {tuple(q.shape[:1])}")
        if q.dim() == 4:
            faults += _range_faults("index", index, 0, q.shape[1], faults)
    return faults


def rollout_row(
    qs: Sequence[Tensor],
    ks: Sequence[Tensor],
    lses: Sequence[Tensor],
    scale: float | None,
    row: Tensor | None,
) -> list[str]:
    faults = []
    if not len(qs) == len(ks) == len(lses) > 0:
        faults.append(
            f"qs, ks and lses hold {len(qs)}, {len(ks)} and {len(lses)} layers; "
            "allowed is the same number, at least 1"
        )
        return faults
    q0 = qs[0]
    for layer, (q, k, lse) in enumerate(zip(qs, ks, lses, strict=True)):
        faults += _tensor_faults(f"qs[{layer}]", q, FLOATS, 4, q0)
        for name, tensor in ((f"qs[{layer}]", q), (f"ks[{layer}]", k)):
            if tensor.shape != q0.shape:
                faults.append(f"{name} is {_shape(tensor)}; allowed is the shape of qs[0], {_shape(q0)}")
        faults += _tensor_faults(f"ks[{layer}]", k, FLOATS, 4, q0)
        faults += _tensor_faults(f"lses[{layer}]", lse, (torch.float32, torch.float64), 3, None)
        if q0.dim() == 4 and lse.shape != (q0.shape[0], q0.shape[2], q0.shape[1]):
            wanted = (q0.shape[0], q0.shape[2], q0.shape[1])
            faults.append(f"lses[{layer}] is {_shape(lse)}; allowed is (B, H, N) = {wanted}")
        if lse.device != q0.device:
            faults.append(f"lses[{layer}] is on {lse.device}; allowed is {q0.device}")
    if row is not None:
        if row.shape != q0.shape[:2] or row.dtype not in (torch.float32, torch.float64):
            faults.append(
                f"row is {_shape(row)} {row.dtype}; allowed is (B, N) = {tuple(q0.shape[:2])} in float32"
            )
        if row.device != q0.device:
            faults.append(f"row is on {row.device}; allowed is {q0.device}")
        if row.is_floating_point():
            usable = (row >= 0) & (row < float("inf"))
            faults += _unless(usable.all(), "row must hold finite values >= 0, got others", faults)
    return faults + _scale_faults(scale)


def check_range(name: str, index: Tensor, low: int, high: int) -> None:
    """Every value of `index` in [low, high): read on a CPU, asserted without a host sync on a GPU."""
    if faults := _range_faults(name, index, low, high, []):
        raise ValueError(faults[0])


def _index_faults(name: str, index: Tensor, dims: int, like: Tensor | None) -> list[str]:
    faults = _tensor_faults(name, index, INTEGERS, dims, None)
    if like is not None and index.device != like.device:
        faults.append(f"{name} is on {index.device}; allowed is q's device, {like.device}")
    return faults


def _range_faults(name: str, index: Tensor, low: int, high: int, faults: list[str]) -> list[str]:
    """Whether a value of index lies outside [low, high)."""
    if index.dtype not in INTEGERS or index.numel() == 0:
        return []
    told = f"{name} holds a value below {low} or too large"  # `high` in it would pin a compiled batch size
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, largest = (int(x) for x in index.aminmax())
        told = f"{name} holds values from {smallest} to {largest}; allowed are {low} to {high - 1}"
    return _unless(((index >= low) & (index < high)).all(), told, faults)


def _unless(holds: Tensor, fault: str, faults: list[str]) -> list[str]:
    """The fault where `holds` is false: read on a CPU, asserted without a host sync on a GPU.

    Where there are faults already, nothing is asserted: they raise, and an assertion would come after.
    """
    if holds.device.type == "cpu" and not torch.compiler.is_compiling():
        return [] if holds else [fault]
    if not faults and holds.device.type != "meta":
        torch._assert_async(holds, fault)
    return []


def _attention_faults(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> list[str]:
    faults = []
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        faults += _tensor_faults(name, tensor, FLOATS, 4, q)
    if q.dim() == k.dim() == 4 and (k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[2:]):
        B, _, H, D = q.shape
        faults.append(f"k is {_shape(k)}; allowed is (B, N, H, D) with B, H, D = {B}, {H}, {D} as in q")
    if k.shape != v.shape:
        faults.append(f"v is {_shape(v)}; allowed is k's shape, {_shape(k)}")
    return faults + _scale_faults(scale)


def _tensor_faults(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], dims: int, like: Tensor | None
) -> list[str]:
    faults = []
    if tensor.dim() != dims:
        faults.append(f"{name} has shape {_shape(tensor)}; allowed are {dims} dimensions")
    elif tensor.numel() == 0:
        faults.append(f"{name} has shape {_shape(tensor)}; allowed are sizes of at least 1")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        faults.append(f"{name} is {tensor.dtype}; allowed are {names}")
    elif like is not None and tensor.dtype != like.dtype:
        faults.append(f"{name} is {tensor.dtype}; allowed is the dtype of q, {like.dtype}")
    if like is not None and tensor.device != like.device:
        faults.append(f"{name} is on {tensor.device}; allowed is the device of q, {like.device}")
    return faults


def _scale_faults(scale: float | None) -> list[str]:
    return violations({"scale": scale}, {"scale": SCALE})


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
