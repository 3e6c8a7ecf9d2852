"""Answers of a GPU's driver, which a compiler takes for constants because it cannot trace the calls."""

import torch


@torch.compiler.assume_constant_result
def has_flash(device: torch.device) -> bool:
    """Whether PyTorch's FlashAttention runs on a CUDA device."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
