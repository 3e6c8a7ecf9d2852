"""The Triton backend: attention as torch.library operators with gradients, and when it can run."""

from typing import Any

import torch
import triton
from torch import Tensor

from . import launch_table, triton_launch
from .attention import Attention
from .triton_rollout import rollout_row

__all__ = ["local_attention", "pair_attention", "reasons_against", "rollout_row"]


def pair_attention(a: Attention) -> tuple[Tensor, Tensor]:
    """As `dca_triton.pair_attention`, for checked arguments: (B, M, H, D) and the log-sum-exp (B, H, M)."""
    return _attention("pair_attention", *a.with_inverse().flat())


def local_attention(a: Attention) -> Tensor:
    """As `dca_triton.local_attention`, for checked arguments: (B, R, H, D)."""
    return _attention("local_attention", *a.flat())[0]


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


@torch.library.custom_op("dca_triton::attention", mutates_args=())
def _attention(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    reader: Tensor | None,
    first: Tensor | None,
    index: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    a = Attention.from_flat(q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale)
    return triton_launch.forward(op, a)


@_attention.register_fake
def _(op, q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale):
    B, M, H, D = q.shape
    rows = M if index is None else index.shape[1]
    return q.new_empty(B, rows, H, D), q.new_empty(B, H, rows, dtype=torch.float32)


@torch.library.custom_op("dca_triton::attention_backward", mutates_args=())
def _attention_backward(
    op: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    reader: Tensor | None,
    first: Tensor | None,
    index: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Tensor]:
    a = Attention.from_flat(q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale)
    return triton_launch.backward(op, a, dout, out, lse)


@_attention_backward.register_fake
def _(op, dout, q, k, v, partner_k, partner_v, partner_index, reader, first, index, out, lse, scale):
    inputs = [q, k, v] if partner_k is None else [q, k, v, partner_k, partner_v]
    return [x.new_empty(x.shape) for x in inputs]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.op, *tensors, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = _attention_backward(ctx.op, dout, *ctx.saved_tensors, ctx.scale)
    partner_gradients = gradients[3:] or [None, None]
    return None, *gradients[:3], *partner_gradients, None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_save)
