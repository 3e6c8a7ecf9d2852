"""Stochastic depth (Huang et al., ECCV 2016) that does not compute what it drops, as in DINOv2."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .plain import is_plain


def kept_rows(path: nn.Module, x: Tensor) -> Tensor | None:
    """The images of x (B, ...) that stochastic depth may keep, in order; None for all.

    int(p B) images are dropped for certain, and their branch is not computed. `add_residual` drops so many of
    the others that each image is dropped with probability p.
    """
    if not is_plain(path, DropPath) or not path.training or not path.scale_by_keep:
        return None
    B = x.shape[0]
    skipped = int(path.drop_prob * B)  # type: ignore[operator]
    return torch.randperm(B, device=x.device)[skipped:].sort().values if skipped else None


def add_residual(x: Tensor, path: nn.Module, rows: Tensor | None, branch: Tensor) -> Tensor:
    """x (B, ...) plus a branch computed for the images `rows` (K,) alone: in expectation, for all of them."""
    if rows is None:
        return x + path(branch)
    assert isinstance(path, DropPath)
    keep, B, K = 1 - path.drop_prob, x.shape[0], rows.shape[0]
    kept = torch.rand(K, device=x.device) * K < keep * B  # K / B are kept with probability keep B / K
    scale = kept.to(x.dtype).view(K, *[1] * (x.dim() - 1)) / keep
    return x.index_add(0, rows, (branch * scale).to(x.dtype))
