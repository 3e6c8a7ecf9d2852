"""Why the paper's layout cannot run the blocks of another class of timm: one reason from a fixed list."""

from collections.abc import Iterable

from .family import TimmModule

PATCHES = (
    "it takes patches instead of images; name a vit_* model, without use_naflex, "
    "and unset TIMM_USE_NAFLEX and TIMM_USE_NAFLEXVIT"
)
CHANNELS = "its attention mixes channels, not tokens"
NO_HEADS = "its blocks have no multi-head attention"
STAGES = "its stages have different grids of tokens, which is supported for Swin alone"
OTHER = "its blocks are not supported"
REASONS = (PATCHES, CHANNELS, NO_HEADS, STAGES, OTHER)


def refusal(model: TimmModule, accepted: Iterable[type]) -> str:
    """A sentence about a model whose class is none of those accepted, and has no subclass among them."""
    *names, last = (kind.__name__ for kind in accepted)
    return f"timm's {type(model).__name__} is not a {', '.join(names)} or {last}: {reason(model)}"


def reason(model: TimmModule) -> str:
    """The first of `REASONS` that holds for a model."""
    kind = type(model).__name__
    if kind == "NaFlexVit":
        return PATCHES
    if kind == "Xcit":
        return CHANNELS
    if not any(hasattr(module, name) for module in model.modules() for name in ("num_heads", "heads")):
        return NO_HEADS
    strides = {stage["reduction"] for stage in getattr(model, "feature_info", [])}
    return STAGES if len(strides) > 1 else OTHER
