"""Inputs of the public operations that the tests share."""

import torch
from torch import Tensor

from dca_triton import ops

B, H, D = 4, 2, 16


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(rows: int, N: int, parts: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A projection (rows, N, parts, H, D), whose parts are strided views."""
    return normal(rows, N, parts, H, D, seed=seed, dtype=dtype)


def layers(N: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    leaves = [packed(2, N, 3, seed=i, dtype=dtype) for i in range(3)]
    qs, ks = [x[:, :, 0] for x in leaves], [x[:, :, 1] for x in leaves]
    return qs, ks, [ops.pair_attention(*x.unbind(2))[1] for x in leaves]
