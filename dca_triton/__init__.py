"""Dual cross-attention learning (DCAL, CVPR 2022) for vision transformers, made fast with Triton kernels.

Names load on first use: `import dca_triton` alone does not load PyTorch, and the operations load no more
than PyTorch.
"""

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .losses import UncertaintyWeightedLoss
    from .model import DualAttentionModel
    from .ops import local_attention, pair_attention, rollout_row
    from .pairs import PairSampler
    from .training import DualAttentionTrainer

    __version__: str

__all__ = [
    "DualAttentionModel",
    "DualAttentionTrainer",
    "PairSampler",
    "UncertaintyWeightedLoss",
    "local_attention",
    "pair_attention",
    "rollout_row",
]

_MODULE_OF = {
    "DualAttentionModel": "dca_triton.model",
    "DualAttentionTrainer": "dca_triton.training",
    "PairSampler": "dca_triton.pairs",
    "UncertaintyWeightedLoss": "dca_triton.losses",
    "local_attention": "dca_triton.ops",
    "pair_attention": "dca_triton.ops",
    "rollout_row": "dca_triton.ops",
}


def __getattr__(name: str) -> object:
    """A public name, a submodule or `__version__`, on first use (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name == "__version__":
        value = metadata.version("dca-triton")
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
