"""Launches the attention kernels on checked tensors: layouts, tile sizes, who reads which image."""

from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuning
from ..kernels.attention_backward import attention_dkdv, attention_dq
from ..kernels.attention_forward import attention_forward
from .partners import Partners


def forward(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    index: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of q, or of its rows `index` (B, R), over the own and the partner's keys (DCAL, eq. 3 and 5).

    op: the name under which tiles are tuned. q (B, M, H, D); k, v (B, N, H, D); partner_k, partner_v
    (B', N', H, D), by default k and v; partner_index (B,), -1 for none. Returns (B, M, H, D), contiguous, and
    the natural log-sum-exp (B, H, M), fp32.
    """
    q, k, v = rows(q), rows(k), rows(v)
    pk, pv = (None, None) if partner_k is None or partner_v is None else (rows(partner_k), rows(partner_v))
    partner_index, index = (None if x is None else x.contiguous() for x in (partner_index, index))
    B, M, H, D = q.shape if index is None else (*index.shape, *q.shape[2:])
    out = q.new_empty(B, M, H, D)
    lse = q.new_empty(B, H, M, dtype=torch.float32)
    config = tuning.choose(op, "forward", D, q.dtype, k.shape[1], q.device)
    with torch.cuda.device_of(q):
        attention_forward[(triton.cdiv(M, config.block_m) * B * H,)](
            q, k, v, pk, pv, partner_index, index, out, lse, scale,
            *_strides(q, k, v, pk, pv), M, k.shape[1], (k if pk is None else pk).shape[1], H,
            ONES=least_width(tuning.gpu_of(q.device).arch), **constants(q, config),
        )  # fmt: skip
    return out, lse


def backward(
    op: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partners: Partners | None,
    index: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v and, where they are given, of partner_k and partner_v, all contiguous.

    Arguments as in `forward`, with its results and the gradient of out. Bit-equal from run to run.
    """
    whole_q = q
    if index is not None:
        q = torch.take_along_dim(q, index.long()[:, :, None, None], 1)
    q, k, v = rows(q), rows(k), rows(v)
    pk, pv = (None, None) if partner_k is None or partner_v is None else (rows(partner_k), rows(partner_v))
    partner_index = None if partners is None else partners.image.contiguous()
    out, dout, lse = out.contiguous(), dout.contiguous(), lse.contiguous()
    B, M, H, D = q.shape
    dq = torch.empty_like(out)
    lse2, minus_delta = torch.empty_like(lse), torch.empty_like(lse)
    config = tuning.choose(op, "dq", D, q.dtype, k.shape[1], q.device)
    with torch.cuda.device_of(q):
        attention_dq[(triton.cdiv(M, config.block_m) * B * H,)](
            q, k, v, pk, pv, partner_index, out, dout, lse, dq, lse2, minus_delta, scale,
            *_strides(q, k, v, pk, pv), M, k.shape[1], (k if pk is None else pk).shape[1], H,
            **constants(q, config),
        )  # fmt: skip
    queries = q, dout, lse2, minus_delta
    if pk is None or pv is None:
        gradients = _dkdv(op, k, v, True, partners, *queries, scale)
    else:
        gradients = _dkdv(op, k, v, True, None, *queries, scale)
        gradients += _dkdv(op, pk, pv, False, partners, *queries, scale)
    if index is not None:  # a sorted sum, not an atomic one, where rows repeat
        images = torch.arange(B, device=q.device)[:, None]
        dq = dq.new_zeros(whole_q.shape).index_put_((images, index.long()), dq, accumulate=True)
    return [dq, *gradients]


def _dkdv(
    op: str,
    k: Tensor,
    v: Tensor,
    own: bool,
    partners: Partners | None,
    q: Tensor,
    dout: Tensor,
    lse2: Tensor,
    minus_delta: Tensor,
    scale: float,
) -> list[Tensor]:
    B, N, H, D = k.shape
    reader, first = (None, None) if partners is None else (partners.reader, partners.first)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    config = tuning.choose(op, "dkdv", D, k.dtype, N, k.device)
    with torch.cuda.device_of(k):
        attention_dkdv[(triton.cdiv(N, config.block_n) * B * H,)](
            q, k, v, reader, first, dout, lse2, minus_delta, dk, dv, scale,
            *_strides(q, k, v), q.shape[1], N, H, OWN=int(own), **constants(k, config),
        )  # fmt: skip
    return [dk, dv]


def rows(x: Tensor) -> Tensor:
    """x as the kernels read it: elements of a row adjacent, and 128 rows, a tile's most, below 2^31 apart."""
    return x if x.stride(-1) == 1 and x.stride(1) < 1 << 24 else x.contiguous()


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides of images, rows and heads; zeros for a tensor that is not there."""
    return [stride for x in tensors for stride in ((0, 0, 0) if x is None else x.stride()[:3])]


def constants(x: Tensor, config: tuning.Config) -> dict[str, Any]:
    """What a kernel on x (..., D) is compiled for."""
    D = x.shape[-1]
    return dict(
        D=D,
        DP=triton.next_power_of_2(D),
        BM=config.block_m,
        BN=config.block_n,
        PRECISION=precision(x.dtype, tuning.gpu_of(x.device).arch),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def precision(dtype: torch.dtype, arch: str) -> str:
    """Products of float32 are taken in float32, or in TF32 where PyTorch's matmul may and the chip can."""
    matmul = torch.backends.cuda.matmul
    before_2_9 = not hasattr(matmul, "fp32_precision")
    allowed = matmul.allow_tf32 if before_2_9 else matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed and arch.startswith("sm_") else "ieee"


def least_width(arch: str) -> int:
    """Columns of the narrowest matrix instruction that an architecture has for every tile height.

    tcgen05.mma of compute capability 10 and 11 takes 128 rows by multiples of 16 columns alone, mma and wgmma
    take 8, CDNA's matrix cores 32 at their best.
    """
    if arch.startswith("gfx"):
        return 32 if arch.startswith("gfx9") else 16
    return 16 if 100 <= int(arch.removeprefix("sm_")) < 120 else 8
