"""Stochastic depth (Huang et al., ECCV 2016) that does not compute what it drops, as in DINOv2."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn


def surviving(path: nn.Module, x: Tensor) -> Tensor | None:
    """The images of x (B, ...) that may be kept, in order; None for all.

    int(p B) images are dropped for certain, so that their branch need not be computed; `add_branch` drops of
    the others so many that each image is dropped with probability p, as ever.
    """
    if not isinstance(path, DropPath) or not path.training:
        return None
    B = x.shape[0]
    skipped = int(path.drop_prob * B)
    return torch.randperm(B, device=x.device)[skipped:].sort().values if skipped else None


def add_branch(x: Tensor, path: nn.Module, rows: Tensor | None, branch: Tensor) -> Tensor:
    """x (B, ...) plus a branch computed for the images `rows` (K,) alone: in expectation, for all of them."""
    if rows is None:
        return x + path(branch)
    assert isinstance(path, DropPath)
    keep, B, K = 1 - path.drop_prob, x.shape[0], rows.shape[0]
    kept = torch.rand(K, device=x.device) * K < keep * B  # K / B survive with probability keep B / K
    scale = kept.to(x.dtype).view(K, *[1] * (x.dim() - 1)) / keep
    return x.index_add(0, rows, (branch * scale).to(x.dtype))
