"""PyTorch's fused attention with its log-sum-exp, on a CPU and on a GPU. Nothing of size N x N is stored."""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Most scores that one chunk of a row-wise product holds: 1 MiB of fp32 stays in a core's cache; 256 MiB need
# few launches on a GPU.
CHUNK, GPU_CHUNK = 1 << 18, 1 << 26

Kernel = Callable[[Tensor, Tensor, Tensor, float, Tensor | None, float], tuple[Tensor, Tensor]]


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ scale + mask) V (B, M, H, D) and its log-sum-exp (B, H, M), which carries no gradient.

    Where no kernel gives the log-sum-exp, another product Q Kᵀ computes it, beside the two of the forward and
    the four of the backward pass: on a CPU with dropout or a mask that learns, on a GPU with any mask. A
    compiler leaves it out where nothing reads it.

    kernel: One of `GPU_KERNELS` that serves these tensors; by default that of F.scaled_dot_product_attention.
    """
    q, k, v = in_rows(q), adjacent(k), adjacent(v)
    q_, k_, v_ = (t.transpose(1, 2) for t in (q, k, v))
    compute = _kernel_of(q, mask, dropout) if kernel is None else GPU_KERNELS[kernel]
    if compute is not None:
        out, lse = compute(q_, k_, v_, scale, mask, dropout)
        return out.transpose(1, 2).contiguous(), lse.contiguous()
    out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, dropout_p=dropout, scale=scale)
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():  # an exporter may exchange the function for one with other strides
        out = out.clone(memory_format=torch.contiguous_format)
    return out.contiguous(), _log_sum_exp(q, k, scale, mask)


def _kernel_of(q: Tensor, mask: Tensor | None, dropout: float) -> Kernel | None:
    """The kernel that F.scaled_dot_product_attention uses and that also returns the log-sum-exp, if any.

    F.scaled_dot_product_attention checks shapes, dtypes and strides before it calls a kernel, and the kernels
    check little. Here the public operations have checked shapes and dtypes, and `in_rows` and `adjacent`
    arrange the strides. Exported graphs run where there are no such kernels.
    """
    if torch.compiler.is_exporting():
        return None
    if q.device.type == "cpu":
        learned = mask is not None and mask.requires_grad  # the kernel gives a mask no gradient
        return _cpu if dropout == 0 and not learned and _flash_is_enabled() else None
    # A mask would have to be padded for the kernels; on ROCm, which kernels exist depends on the build.
    if (
        q.device.type != "cuda"
        or torch.version.hip
        or mask is not None
        or q.shape[-1] % 8
        or q.shape[-1] > 256
    ):
        return None
    if q.dtype in (torch.float16, torch.bfloat16) and _flash_is_enabled():
        from .driver import has_flash  # loads PyTorch's compiler

        if has_flash(q.device):
            return _flash
    if q.dtype != torch.float64 and _efficient_is_enabled():
        return _efficient
    return None


def _cpu(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout, scale=scale)[:2]


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = attend(q, k, v, None, True, dropout, scale=scale)
    return out, lse[:, :, : q.shape[2]]  # the kernel pads the rows


def _cudnn(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = attend(q, k, v, mask, True, dropout, scale=scale)
    return out, lse.reshape(q.shape[:3])


def _flash_attn_4(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    attend = importlib.import_module(FLASH_ATTN_4).flash_attn_func
    out, lse = attend(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), lse.detach()


# Kernels that can be asked for by name, and the module of the one that is not PyTorch's.
GPU_KERNELS: dict[str, Kernel] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "flash_attn_4": _flash_attn_4,
}
FLASH_ATTN_4 = "flash_attn.cute"


def in_rows(q: Tensor) -> Tensor:
    """q itself if the kernel's output will be contiguous, else a contiguous copy.

    The kernel allocates its output (B, H, M, D) like q, and then writes it as if its features were adjacent.
    For some layouts of q (overlapping windows, for example) they are not.
    """
    of_image, of_token, of_head, of_feature = q.stride()
    if of_image > of_token > of_head > of_feature == 1:  # a packed projection: nothing to find out
        return q
    out = torch.empty_like(q.transpose(1, 2), device="meta")
    return q if q.stride(-1) == 1 and out.transpose(1, 2).is_contiguous() else q.contiguous()


def adjacent(x: Tensor) -> Tensor:
    """Return x with a last stride of 1, which the kernel requires; a copy only if its stride differs."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _flash_is_enabled() -> bool:
    """The switch for every device, despite its name. A compiler cannot trace it and assumes that it is on."""
    return torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()


def _efficient_is_enabled() -> bool:
    return torch.compiler.is_compiling() or torch.backends.cuda.mem_efficient_sdp_enabled()


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    B, M, H, _ = q.shape
    lse = torch.empty(B, H, M, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    keys = k.permute(0, 2, 3, 1)
    mask = None if mask is None else mask.expand(-1, -1, M, -1)
    for rows in row_chunks(M, B * H * k.shape[1], CHUNK if q.device.type == "cpu" else GPU_CHUNK):
        scores = (q[:, rows].transpose(1, 2) @ keys).to(lse.dtype) * scale
        lse[:, :, rows] = (scores if mask is None else scores + mask[:, :, rows]).logsumexp(-1)
    return lse


def row_chunks(rows: int, scores_per_row: int, most: int) -> list[slice]:
    if torch.compiler.is_exporting():  # one graph serves all batch sizes
        return [slice(None)]
    step = max(1, most // scores_per_row)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
