"""Dropout of attention probabilities, which only the torch backend has."""

import functools
import warnings

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import Backend, torch_backend


def dropped_attention(attention: ops.Attention, dropout: float, *, backend: Backend) -> tuple[Tensor, Tensor]:
    """`pair_attention` that drops the share `dropout` > 0 of the probabilities.

    It runs on PyTorch. Where backend="auto" could choose a GPU's kernels, it warns once; backend="triton"
    raises RuntimeError.
    """
    message = "drop_rate > 0 drops attention probabilities in training, which only the torch backend does"
    if backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run here: {message}; set drop_rate=0 or backend='auto'")
    if backend == "auto" and torch.cuda.is_available() and not torch.compiler.is_compiling():
        _warn_once(message)
    return torch_backend.pair_attention(attention, dropout)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def dropout_rate(drop: nn.Module) -> float:
    """The share of attention probabilities that `drop` drops now; they are never formed for it to be called.

    Raises TypeError for a module of another kind.
    """
    if not isinstance(drop, nn.Dropout | nn.Identity):
        raise TypeError(f"attn_drop must be nn.Dropout or nn.Identity, got {type(drop).__name__}")
    return drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
