"""Benchmark sizes for each kind of device."""

from typing import NamedTuple

import torch

from dca_triton.ops import Backend

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LENGTHS = (128, 197, 785, 1568, 3136)  # 197 and 785 are a ViT/16 at 224 and 448 pixels


class ModelShape(NamedTuple):
    """A timm backbone, the side of its square images in pixels, and the batch size."""

    backbone: str
    size: int
    B: int


class OpShape(NamedTuple):
    """Batch, tokens, heads, head dimension, and layers of a rollout."""

    B: int
    N: int
    H: int
    D: int
    L: int


def model_shapes(device: torch.device) -> list[ModelShape]:
    """Return DeiT-Tiny at 224 pixels and DeiT-Small at 448, with larger batches on a GPU."""
    tiny, small = (64, 8) if device.type == "cuda" else (8, 2)
    return [ModelShape("deit_tiny_patch16_224", 224, tiny), ModelShape("deit_small_patch16_224", 448, small)]


def op_shapes(device: torch.device) -> list[OpShape]:
    """Return a shape for each of `LENGTHS`."""
    B, H = (4, 12) if device.type == "cuda" else (2, 3)
    return [OpShape(B, N, H, D=64, L=12) for N in LENGTHS]


def op_dtype(device: torch.device) -> str:
    """Return the dtype that users train in on this device."""
    return "bf16" if device.type == "cuda" else "fp32"


def dtypes_on(device: torch.device) -> list[str]:
    """Return the dtypes to measure; bf16 takes a hundred times as long on a CPU without its instructions."""
    slow = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [name for name in DTYPES if name != "bf16" or not slow]


def backend_on(device: torch.device) -> Backend:
    """Return the backend by name, so that a fallback is never timed as the kernels."""
    return "triton" if device.type == "cuda" else "torch"
