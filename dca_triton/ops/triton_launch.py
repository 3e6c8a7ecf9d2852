"""Launches the attention kernels on checked tensors: layouts, tile sizes, who reads which image."""

from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuning
from ..kernels.attention_backward import attention_dkdv, attention_dq
from ..kernels.attention_forward import attention_forward


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
    q, k, v = _rows(q), _rows(k), _rows(v)
    pk, pv = (None, None) if partner_k is None or partner_v is None else (_rows(partner_k), _rows(partner_v))
    partner_index, index = (None if x is None else x.contiguous() for x in (partner_index, index))
    B, M, H, D = q.shape if index is None else (*index.shape, *q.shape[2:])
    out = q.new_empty(B, M, H, D)
    lse = q.new_empty(B, H, M, dtype=torch.float32)
    config = tuning.choose(op, "forward", D, q.dtype, k.shape[1], q.device)
    with torch.cuda.device_of(q):
        attention_forward[(triton.cdiv(M, config.block_m) * B * H,)](
            q, k, v, pk, pv, partner_index, index, out, lse, scale,
            *_strides(q, k, v, pk, pv), M, k.shape[1], (k if pk is None else pk).shape[1], H,
            ONES=8 if torch.version.hip is None else 32, **_constants(q, config),
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
    partner_index: Tensor | None,
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
    q, k, v = _rows(q), _rows(k), _rows(v)
    pk, pv = (None, None) if partner_k is None or partner_v is None else (_rows(partner_k), _rows(partner_v))
    partner_index = None if partner_index is None else partner_index.contiguous()
    out, dout, lse = out.contiguous(), dout.contiguous(), lse.contiguous()
    B, M, H, D = q.shape
    dq = torch.empty_like(out)
    lse2, minus_delta = torch.empty_like(lse), torch.empty_like(lse)
    config = tuning.choose(op, "dq", D, q.dtype, k.shape[1], q.device)
    with torch.cuda.device_of(q):
        attention_dq[(triton.cdiv(M, config.block_m) * B * H,)](
            q, k, v, pk, pv, partner_index, out, dout, lse, dq, lse2, minus_delta, scale,
            *_strides(q, k, v, pk, pv), M, k.shape[1], (k if pk is None else pk).shape[1], H,
            **_constants(q, config),
        )  # fmt: skip
    queries = q, dout, lse2, minus_delta
    if partner_index is None:
        gradients = _dkdv(op, k, v, None, *queries, scale)
    elif pk is None or pv is None:
        image = torch.cat([torch.arange(B, device=q.device), partner_index])
        gradients = _dkdv(op, k, v, _readers(image, B, B), *queries, scale)
    else:
        readers = _readers(partner_index, B, pk.shape[0])
        gradients = _dkdv(op, k, v, None, *queries, scale) + _dkdv(op, pk, pv, readers, *queries, scale)
    if index is not None:  # a sorted sum, not an atomic one, where rows repeat
        rows = torch.arange(B, device=q.device)[:, None]
        dq = torch.zeros_like(whole_q).index_put_((rows, index.long()), dq, accumulate=True)
    return [dq, *gradients]


def _dkdv(
    op: str,
    k: Tensor,
    v: Tensor,
    readers: tuple[Tensor, Tensor] | None,
    q: Tensor,
    dout: Tensor,
    lse2: Tensor,
    minus_delta: Tensor,
    scale: float,
) -> list[Tensor]:
    B, N, H, D = k.shape
    M = q.shape[1]
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    config = tuning.choose(op, "dkdv", D, k.dtype, N, k.device)
    with torch.cuda.device_of(k):
        attention_dkdv[(triton.cdiv(N, config.block_n) * B * H,)](
            q, k, v, *(readers or (None, None)), dout, lse2, minus_delta, dk, dv, scale,
            *_strides(q, k, v), M, N, H, **_constants(k, config),
        )  # fmt: skip
    return [dk, dv]


def _readers(image: Tensor, B: int, images: int) -> tuple[Tensor, Tensor]:
    """The rows that read image j, reader[first[j]:first[j + 1]]: i mod B where image[i] = j, i ascending.

    Entries of -1 sort in front of first[0].
    """
    image, order = torch.sort(image, stable=True)
    return order % B, torch.searchsorted(
        image, torch.arange(images + 1, device=image.device, dtype=image.dtype)
    )


def _rows(x: Tensor) -> Tensor:
    """x with the elements of a row adjacent, as the kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides of images, rows and heads; zeros for a tensor that is not there."""
    return [stride for x in tensors for stride in ((0, 0, 0) if x is None else x.stride()[:3])]


def _constants(x: Tensor, config: tuning.Config) -> dict[str, Any]:
    D = x.shape[-1]
    return dict(
        D=D,
        DP=triton.next_power_of_2(D),
        BM=config.block_m,
        BN=config.block_n,
        PRECISION=_precision(x),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _precision(x: Tensor) -> str:
    """Products of float32 are taken in float32, or in TF32 where PyTorch's matmul may and the chip can."""
    matmul = torch.backends.cuda.matmul
    before_2_9 = not hasattr(matmul, "fp32_precision")
    allowed = matmul.allow_tf32 if before_2_9 else matmul.fp32_precision == "tf32"
    return "tf32" if x.dtype == torch.float32 and allowed and torch.version.hip is None else "ieee"
