"""`auto` takes another fused attention where this GPU's table says that it is faster than the kernels."""

import functools
import math
from importlib.util import find_spec

import torch

from . import launch_table
from .attention import Attention
from .fused import FLASH_ATTN_4
from .launch_table import AttentionKey, Times

WINS = 0.97  # another implementation is taken where it needs at most this share of the kernels' time


def faster(op: str, a: Attention) -> str | None:
    """The implementation of `fused.GPU_KERNELS` to take instead of the Triton kernels, if any.

    Nothing is taken that was not measured on this GPU for this head dimension and dtype; the length measured
    nearest decides. A compiled graph keeps the kernels where flash-attn-4 is faster, which a compiler cannot
    trace.
    """
    if a.q.device.type != "cuda" or a.bias is not None:
        return None
    if a.partner_k is not None and a.partner_k.shape[1] != a.k.shape[1]:  # needs a mask
        return None
    name = _faster(op, a.needs_gradient, a.q.shape[-1], a.q.dtype, int(a.k.shape[1]), a.q.device)
    return None if name == "flash_attn_4" and torch.compiler.is_compiling() else name


@torch.compiler.assume_constant_result  # a compiler cannot trace files
def _faster(
    op: str, training: bool, head_dim: int, dtype: torch.dtype, n: int, device: torch.device
) -> str | None:
    gpu = launch_table.gpu_of(device)
    times = launch_table.times(gpu)
    key = nearest(times, op, training, head_dim, launch_table.dtype_name(dtype), n)
    return None if key is None else winner(times[key])


def nearest(times: Times, op: str, training: bool, head_dim: int, dtype: str, n: int) -> AttentionKey | None:
    """What was measured at the length that is nearest to n by ratio, if anything."""
    known = [key for key in times if key[:4] == (op, training, head_dim, dtype)]
    return min(known, key=lambda key: abs(math.log(key.n / n)), default=None)


def winner(ms: dict[str, float]) -> str | None:
    """The fastest implementation that is installed, if it beats the kernels by more than 3 %."""
    others = {name: t for name, t in ms.items() if name != "triton" and is_installed(name)}
    best = min(others, key=others.__getitem__, default=None)
    return best if best is not None and others[best] < WINS * ms["triton"] else None


@functools.cache
def is_installed(name: str) -> bool:
    """Whether an implementation of `fused.GPU_KERNELS` can be imported; PyTorch's always can."""
    return name != "flash_attn_4" or can_import(FLASH_ATTN_4)


def can_import(module: str) -> bool:
    """Whether a module of a package is there, without importing it."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the package is absent or broken
        return False


def candidates(device: torch.device) -> list[str]:
    """The implementations to measure on a GPU beside the kernels.

    PyTorch's FlashAttention 2; from Hopper on cuDNN's, which PyTorch does not choose by itself; flash-attn-4
    where it is installed.
    """
    hopper = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    return ["flash", *["cudnn"] * hopper, *["flash_attn_4"] * is_installed("flash_attn_4")]


def sentence(key: AttentionKey, ms: dict[str, float]) -> str:
    """Which implementation `auto` takes, and why."""
    best = winner(ms)
    others = {name: t for name, t in ms.items() if name != "triton"}
    what = f"{key.op} {'with gradient' if key.training else 'forward'}, N={key.n}"
    if best is not None:
        return f"{what}: {best}, which takes {ms[best] / ms['triton']:.2f} of the kernels' time"
    if not others:
        return f"{what}: triton; nothing else runs"
    next_best = min(others, key=others.__getitem__)
    absent = "" if is_installed(next_best) else ", which is not installed,"
    return f"{what}: triton; {next_best}{absent} takes {others[next_best] / ms['triton']:.2f} of its time"
