"""Fused attentions of PyTorch and of others that run on a GPU, to be measured beside the library's."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from dca_triton.ops.fused import FLASH_ATTN_4
from dca_triton.ops.implementations import can_import

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, H, M, D), k and v (B, H, N, D) -> (B, H, M, D)


def peers(device: torch.device) -> dict[str, Attend]:
    """Return every fused attention to compare with on a device, by name.

    One that cannot run there, or not in a dtype, raises an error when it is called.
    """
    if device.type != "cuda":
        return {}
    found: dict[str, Attend] = {
        "cuDNN SDPA": partial(_sdpa, SDPBackend.CUDNN_ATTENTION),
        "FlashAttention 2 SDPA": partial(_sdpa, SDPBackend.FLASH_ATTENTION),
        "FlexAttention": _flex(),
    }
    if can_import(FLASH_ATTN_4):
        found["FlexAttention FLASH"] = _flex(kernel_options={"BACKEND": "FLASH"})
        found["flash-attn-4"] = partial(_flash_attn, FLASH_ATTN_4)
    if can_import("flash_attn.flash_attn_interface"):
        found["flash-attn"] = partial(_flash_attn, "flash_attn")
    return found


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _flex(**options: Any) -> Attend:
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return partial(compiled, **options)


def _flash_attn(module: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend = importlib.import_module(module).flash_attn_func
    found = attend(*(x.transpose(1, 2) for x in (q, k, v)))
    out = found[0] if isinstance(found, tuple) else found  # some versions return the log-sum-exp, too
    return out.transpose(1, 2)
