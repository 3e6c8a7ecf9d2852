"""Checks of a model's arguments and inputs."""

from typing import Any

from torch import Tensor

from ..arguments import choice, flag, integer, number, raise_faults, size, violations
from ..ops import checks
from .backbone import Backbone

VALUE_RULES = {
    "backbone_name": (lambda v: isinstance(v, str), "a timm model's name"),
    "num_classes": integer(1),
    "task_type": choice("fgvc", "reid"),
    "num_sa_blocks": integer(1),
    "num_glca_blocks": integer(1),
    "num_heads": integer(1),
    "top_k_ratio": number(lambda v: 0 < v <= 1, "in (0, 1]"),
    "drop_rate": number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "drop_path_rate": number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "img_size": size(),
    "cache_attention_rollout": flag(),
    "layout": choice("reference", "paper"),
    "pretrained": flag(),
    "backend": choice("auto", "triton", "torch"),
}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for every argument of a model that is outside its range."""
    faults = violations(arguments, VALUE_RULES)
    if arguments["layout"] == "paper" and arguments["num_glca_blocks"] != 1:
        faults.append(f"num_glca_blocks must be 1 with layout='paper', got {arguments['num_glca_blocks']!r}")
    raise_faults(faults)


def check_heads(num_heads: int, width: int) -> None:
    """Raise ValueError unless the heads divide the backbone's width."""
    if width % num_heads:
        raise_faults([f"num_heads must be a divisor of the backbone's width, {width}, got {num_heads}"])


def check_inputs(
    backbone: Backbone, x: Tensor, x_pair: Tensor | None = None, partner_index: Tensor | None = None
) -> None:
    """Raise ValueError for every input of `DualAttentionModel.forward` that does not fit."""
    checks.check_tensors({"x": x}, x_pair=x_pair, partner_index=partner_index)
    faults = []
    for name, images in (("x", x), ("x_pair", x_pair)):
        if images is None:
            continue
        if images.dim() != 4 or 0 in images.shape:
            faults.append(
                f"{name} must be images (B, {backbone.in_chans}, h, w) with B >= 1, "
                f"got shape {tuple(images.shape)}"
            )
        else:
            faults += backbone.image_faults(name, images)
        if not images.is_floating_point():
            faults.append(f"{name} must be floating point, got {images.dtype}")
    if x_pair is not None and x_pair.shape != x.shape:
        faults.append(f"x_pair must have the shape of x, {tuple(x.shape)}, got {tuple(x_pair.shape)}")
    if x_pair is not None and partner_index is not None:
        faults.append("x_pair must be None where partner_index is given, got both")
    if partner_index is not None and (
        partner_index.shape != x.shape[:1] or partner_index.dtype not in checks.INTEGERS
    ):
        faults.append(
            f"partner_index must be (B,) = {tuple(x.shape[:1])} in int32 or int64, "
            f"got {tuple(partner_index.shape)} in {partner_index.dtype}"
        )
    raise_faults(faults)
    if partner_index is not None:
        checks.check_range("partner_index", partner_index, -1, len(x))
