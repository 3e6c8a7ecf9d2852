"""The Triton backend, and when it can run."""

import torch
import triton
from torch import Tensor

from . import launch_table
from .attention import Attention
from .operators import attention
from .triton_rollout import rollout_row

__all__ = ["local_attention", "pair_attention", "reasons_against", "rollout_row"]


def pair_attention(a: Attention) -> tuple[Tensor, Tensor]:
    """As `dca_triton.pair_attention`, for checked arguments: (B, M, H, D) and the log-sum-exp (B, H, M)."""
    return attention("pair_attention", a)


def local_attention(a: Attention) -> Tensor:
    """As `dca_triton.local_attention`, for checked arguments: (B, R, H, D)."""
    return attention("local_attention", a)[0]


def reasons_against(*tensors: Tensor) -> list[str]:
    """Every reason why the kernels cannot run on these tensors (..., D); empty if they can."""
    kinds = [(x.device, x.dtype, x.shape[-1] if x.dim() else 1) for x in tensors]
    reasons: list[str] = []
    for kind in dict.fromkeys(kinds):  # q, k and v of a sound call are of one kind
        reasons += _reasons_against(*kind)
    return list(dict.fromkeys(reasons))


@torch.compiler.assume_constant_result  # a compiler cannot trace calls of the driver
def _reasons_against(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    reasons = []
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            have = ".".join(map(str, capability))
            reasons.append(f"compute capability must be 8.0 or newer, got {have} of {device}")
    elif device.type == "cpu" and not triton.knobs.runtime.interpret:
        reasons.append("tensors must be on a GPU, got one on the CPU, where Triton needs TRITON_INTERPRET=1")
    elif device.type not in ("cuda", "cpu"):
        reasons.append(f"tensors must be on a CUDA or ROCm device, got one on {device}")
    dtypes = tuple(launch_table.DTYPES.values())
    if dtype not in dtypes:
        reasons.append(f"dtype must be {' or '.join(map(str, dtypes))}, got {dtype}")
    on_gpu = device.type == "cuda"
    sizes = launch_table.head_dims(launch_table.gpu_of(device)) if on_gpu else launch_table.HEAD_DIMS
    if head_dim not in sizes:
        reasons.append(f"head dimension D must be one of {', '.join(map(str, sizes))}, got {head_dim}")
    return tuple(reasons)
