"""Time the Triton kernels beside other fused attentions on a GPU, with and without the backward pass."""

import itertools
from collections.abc import Callable, Sequence

import torch
import triton.testing
from torch import Tensor

from ..ops import implementations, launch_table, torch_backend, triton_backend
from ..ops.attention import Attention
from ..ops.launch_table import AttentionKey
from ..ops.pairing import invert_pairs

OPS = ("pair_attention", "local_attention")
LOCAL_RATIO = 0.1
BATCH, HEADS = 64, 12
TOLERANCE = {"fp16": 4e-2, "bf16": 4e-2, "fp32": 1e-3}

Run = Callable[[], tuple[Tensor, ...]]


def keys(
    ops: Sequence[str], head_dims: Sequence[int], dtypes: Sequence[str], lengths: Sequence[int]
) -> list[AttentionKey]:
    """What is measured: every attention among `ops`, forward alone and with the backward pass."""
    attentions = [op for op in ops if op in OPS]
    sizes = itertools.product(attentions, (False, True), head_dims, dtypes, lengths)
    return [AttentionKey(*size) for size in sizes]


def times_of(key: AttentionKey, device: torch.device) -> dict[str, float]:
    """Median milliseconds of the kernels ("triton") and of every other implementation.

    One that does not run, or whose outputs or gradients differ from the kernels', is left out.
    """
    own = run_of(key, device, None)
    expected, times = own(), {"triton": _milliseconds(own)}
    for name in implementations.candidates(device):
        run = run_of(key, device, name)
        try:
            if _agree(run(), expected, TOLERANCE[key.dtype]):
                times[name] = _milliseconds(run)
        except Exception:  # whatever another library raises for what it does not serve
            continue
    return times


def _milliseconds(run: Run) -> float:
    return float(triton.testing.do_bench(run, return_mode="median"))


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> bool:
    """Whether each difference is at most this share of the expected tensor, in the Euclidean norm."""
    pairs = zip(found, expected, strict=True)
    return all((x.double() - y.double()).norm() <= tolerance * y.double().norm() for x, y in pairs)


def run_of(key: AttentionKey, device: torch.device, kernel: str | None) -> Run:
    """Make the tensors of an attention, always the same, and return a function that computes it.

    kernel: One of `fused.GPU_KERNELS`; None for the Triton kernels. The function returns the output or, in
    training, the gradients of queries, keys and values.
    """
    generator = torch.Generator(device).manual_seed(key.n)
    packed = torch.randn(BATCH, key.n, 3, HEADS, key.head_dim, device=device, generator=generator)
    packed = packed.to(launch_table.DTYPES[key.dtype])
    q, k, v = (x.requires_grad_(key.training) for x in packed.unbind(2))
    if key.op == "pair_attention":
        a = Attention(q, k, v, pairs=invert_pairs(torch.arange(BATCH, device=device).roll(1), BATCH))
    else:
        rows = torch.arange(max(1, int(key.n * LOCAL_RATIO)), device=device)
        a = Attention(q, k, v, rows=rows.repeat(BATCH, 1))

    def attend() -> Tensor:
        own = getattr(triton_backend, key.op)
        found = own(a) if kernel is None else getattr(torch_backend, key.op)(a, kernel=kernel)
        return found[0] if isinstance(found, tuple) else found

    if not key.training:
        return lambda: (attend(),)
    return lambda: torch.autograd.grad(attend().sum(), (q, k, v))
