"""Launch the attention kernels on checked tensors: memory layouts, tile sizes, compile-time arguments."""

from typing import Any

import torch
from torch import Tensor

from ..kernels.attention_backward import attention_dkdv, attention_dq
from ..kernels.attention_forward import attention_forward
from . import launch_table
from .attention import Attention
from .pairing import Partners
from .rows import take_rows

# Multiplications and additions are fused, whatever Triton's version and TRITON_DEFAULT_FP_FUSION say.
FUSED = {"enable_fp_fusion": True}


def forward(op: str, a: Attention) -> tuple[Tensor, Tensor]:
    """Run attention of a's queries over the own and the partner's keys (DCAL, eq. 3 and 5).

    op: The name under which tiles are tuned. Returns (B, M, H, D), contiguous, and the natural log-sum-exp
    (B, H, M), float32.
    """
    a = _readable(a)
    B, M, H, D = a.q.shape if a.rows is None else (*a.rows.shape, *a.q.shape[2:])
    out = a.q.new_empty(B, M, H, D)
    lse = a.q.new_empty(B, H, M, dtype=torch.float32)
    config, meta = launch_options(op, "forward", a.k)
    with torch.cuda.device_of(out):
        attention_forward[(tiles(M, config.block_m) * B * H,)](
            *a[:5], a.partner_index, a.rows, out, lse, a.factor,
            *_strides(*a[:5]), M, a.k.shape[1], a.partner_keys.shape[1], H,
            ONES=least_width(launch_table.gpu_of(out.device).arch), **meta,
        )  # fmt: skip
    return out, lse


def backward(op: str, a: Attention, dout: Tensor, out: Tensor, lse: Tensor) -> list[Tensor]:
    """Return the gradients of q, k, v and, if there are partners, of partner_k and partner_v, all contiguous.

    out, lse: The results of `forward`; dout: the gradient of out. Bit-equal from run to run.
    """
    whole_q = a.q
    if a.rows is not None:
        a = a._replace(q=take_rows(a.q, a.rows))
    a = _readable(a)
    out, dout, lse = out.contiguous(), dout.contiguous(), lse.contiguous()
    B, M, H, _ = a.q.shape
    dq = torch.empty_like(out)
    lse2, minus_delta = torch.empty_like(lse), torch.empty_like(lse)
    config, meta = launch_options(op, "dq", a.k)
    with torch.cuda.device_of(dq):
        attention_dq[(tiles(M, config.block_m) * B * H,)](
            *a[:5], a.partner_index, out, dout, lse, dq, lse2, minus_delta, a.factor,
            *_strides(*a[:5]), M, a.k.shape[1], a.partner_keys.shape[1], H, **meta,
        )  # fmt: skip
    queries = a.q, dout, lse2, minus_delta, a.factor
    pairs = a.pairs if isinstance(a.pairs, Partners) else None
    if a.partner_k is None or a.partner_v is None:
        gradients = _dkdv(op, a.k, a.v, pairs, True, *queries)
    else:
        gradients = _dkdv(op, a.k, a.v, None, True, *queries)
        gradients += _dkdv(op, a.partner_k, a.partner_v, pairs, False, *queries)
    if a.rows is not None:  # repeated rows are added in sorted order, not atomically
        images = torch.arange(B, device=dq.device)[:, None]
        dq = dq.new_zeros(whole_q.shape).index_put_((images, a.rows.long()), dq, accumulate=True)
    return [dq, *gradients]


def _dkdv(
    op: str,
    k: Tensor,
    v: Tensor,
    pairs: Partners | None,
    own: bool,
    q: Tensor,
    dout: Tensor,
    lse2: Tensor,
    minus_delta: Tensor,
    scale: float,
) -> list[Tensor]:
    """Gradients of k and v from queries of their own images (if `own`) and of the images paired with them."""
    B, N, H, _ = k.shape
    reader, first = (None, None) if pairs is None else (pairs.readers, pairs.starts)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    config, meta = launch_options(op, "dkdv", k)
    with torch.cuda.device_of(k):
        attention_dkdv[(tiles(N, config.block_n) * B * H,)](
            q, k, v, reader, first, dout, lse2, minus_delta, dk, dv, scale,
            *_strides(q, k, v), q.shape[1], N, H, OWN=int(own), **meta,
        )  # fmt: skip
    return [dk, dv]


def launch_options(op: str, direction: str, k: Tensor) -> tuple[launch_table.Config, dict[str, Any]]:
    """The tiles of a launch over the keys k (B, N, H, D), and the kernel's compile-time arguments."""
    _, N, _, D = k.shape
    config = launch_table.choose(op, direction, D, k.dtype, N, k.device)
    return config, dict(
        D=D,
        DP=1 << (D - 1).bit_length(),  # the next power of 2
        BM=config.block_m,
        BN=config.block_n,
        PRECISION=precision(k.dtype, launch_table.gpu_of(k.device).arch),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **FUSED,
    )


def _readable(a: Attention) -> Attention:
    """Return a copy with every tensor in a layout that the kernels read."""
    pairs = a.pairs
    if isinstance(pairs, Partners):
        pairs = Partners(pairs.partner.contiguous(), *pairs[1:])
    elif pairs is not None:
        pairs = pairs.contiguous()
    partner_k = None if a.partner_k is None else rows(a.partner_k)
    partner_v = None if a.partner_v is None else rows(a.partner_v)
    index = None if a.rows is None else a.rows.contiguous()
    return Attention(rows(a.q), rows(a.k), rows(a.v), partner_k, partner_v, pairs, index, a.scale)


def rows(x: Tensor) -> Tensor:
    """Return x (B, N, H, D) as the kernels read it.

    Elements of a row are adjacent, and 128 rows lie within 2^31 elements. Where D is not a multiple of 16,
    the stride of heads is a multiple of the largest power of 2 that divides D.
    """
    D = x.shape[-1]
    _, of_row, of_head, of_element = x.stride()
    aligned = D % 16 == 0 or of_head % (D & -D) == 0
    return x if of_element == 1 and of_row < 1 << 24 and aligned else x.contiguous()


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides of images, rows and heads; zeros for a tensor that is not there."""
    return [stride for x in tensors for stride in ((0, 0, 0) if x is None else x.stride()[:3])]


def precision(dtype: torch.dtype, arch: str) -> str:
    """How to multiply float32: in float32, or in TF32 if PyTorch's matmul may use it and the chip has it."""
    if dtype != torch.float32 or not arch.startswith("sm_"):
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tiles(n: int, size: int) -> int:
    """How many tiles cover n rows or columns. `triton.cdiv` is slow on the host."""
    return -(-n // size)


def least_width(arch: str) -> int:
    """Columns of the narrowest matrix instruction that an architecture has for every tile height.

    tcgen05.mma (compute capability 10 and 11) takes 128 rows only with multiples of 16 columns; mma and wgmma
    take 8 columns. CDNA's matrix cores are fastest with 32.
    """
    if arch.startswith("gfx"):
        return 32 if arch.startswith("gfx9") else 16
    return 16 if 100 <= int(arch.removeprefix("sm_")) < 120 else 8
