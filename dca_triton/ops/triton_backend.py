"""The Triton backend: attention as torch.library operators with gradients, and who may use it."""

from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuning
from . import triton_launch
from .partners import Partners, inverted
from .triton_rollout import rollout_row

__all__ = ["local_attention", "pair_attention", "reasons_against", "rollout_row"]


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | Partners | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As `dca_triton.pair_attention`, for checked arguments: (B, M, H, D) and the log-sum-exp (B, H, M)."""
    if partner_index is None:
        return _attention("pair_attention", q, k, v, None, None, None, None, None, None, scale)
    if not isinstance(partner_index, Partners):
        partner_index = inverted(partner_index, len(k if partner_k is None else partner_k))
    return _attention("pair_attention", q, k, v, partner_k, partner_v, *partner_index, None, scale)


def local_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None, scale: float) -> Tensor:
    """As `dca_triton.local_attention`, for checked arguments: (B, R, H, D)."""
    return _attention("local_attention", q, k, v, None, None, None, None, None, index, scale)[0]


def reasons_against(*tensors: Tensor) -> list[str]:
    """Every reason why the kernels cannot take these tensors, (..., D) each; empty where they can."""
    reasons: list[str] = []
    for x in tensors:
        reasons += _reasons_against(x.device, x.dtype, x.shape[-1] if x.dim() else 1)
    return list(dict.fromkeys(reasons))


@torch.compiler.assume_constant_result  # a compiler cannot trace what asks the driver
def _reasons_against(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    reasons = []
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            have = ".".join(map(str, capability))
            reasons.append(f"{device} has compute capability {have}; allowed is 8.0 or newer")
    elif device.type == "cpu" and not triton.knobs.runtime.interpret:
        reasons.append("a tensor is on the CPU; there Triton only interprets, with TRITON_INTERPRET=1")
    elif device.type not in ("cuda", "cpu"):
        reasons.append(f"a tensor is on {device}; allowed are CUDA and ROCm devices")
    dtypes = tuple(tuning.DTYPES.values())
    if dtype not in dtypes:
        reasons.append(f"a dtype is {dtype}; allowed are {', '.join(map(str, dtypes))}")
    if head_dim not in tuning.HEAD_DIMS:
        reasons.append(f"a head dimension is {head_dim}; allowed are {', '.join(map(str, tuning.HEAD_DIMS))}")
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
    return triton_launch.forward(op, q, k, v, partner_k, partner_v, partner_index, index, scale)


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
    partners = None
    if partner_index is not None and reader is not None and first is not None:
        partners = Partners(partner_index, reader, first)
    return triton_launch.backward(op, dout, q, k, v, partner_k, partner_v, partners, index, out, lse, scale)


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
    partners = gradients[3:] or [None, None]
    return None, *gradients[:3], *partners, None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_save)
