"""What a model asks of its arguments and of its inputs."""

from typing import Any

from torch import Tensor

from .arguments import choice, flag, integer, number, size, violations
from .ops import checks

ALLOWED = {
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
    """Raise ValueError naming every argument of a model outside its range."""
    faults = violations(arguments, ALLOWED)
    if arguments["layout"] == "paper" and arguments["num_glca_blocks"] != 1:
        faults.append(f"num_glca_blocks is {arguments['num_glca_blocks']}; allowed is 1 with layout='paper'")
    if faults:
        raise ValueError("; ".join(faults))


def check_inputs(x: Tensor, x_pair: Tensor | None, partner_index: Tensor | None) -> None:
    """Raise ValueError naming everything that does not fit of the inputs of `DualAttentionModel.forward`."""
    checks.check_tensors({"x": x}, x_pair=x_pair, partner_index=partner_index)
    faults = []
    for name, images in (("x", x), ("x_pair", x_pair)):
        if images is None:
            continue
        if images.dim() != 4 or 0 in images.shape:
            faults.append(f"{name} has shape {tuple(images.shape)}; allowed is (B, 3, h, w) with B >= 1")
        if not images.is_floating_point():
            faults.append(f"{name} is {images.dtype}; allowed are floating-point images")
    if x_pair is not None and x_pair.shape != x.shape:
        faults.append(f"x_pair has shape {tuple(x_pair.shape)}; allowed is x's, {tuple(x.shape)}")
    if x_pair is not None and partner_index is not None:
        faults.append("x_pair and partner_index are both given; allowed is one of them")
    if partner_index is not None and (
        partner_index.shape != x.shape[:1] or partner_index.dtype not in checks.INTEGERS
    ):
        faults.append(
            f"partner_index is {tuple(partner_index.shape)} {partner_index.dtype}; "
            f"allowed is (B,) = ({x.shape[0]},) in int32 or int64"
        )
    if faults:
        raise ValueError("; ".join(faults))
    if partner_index is not None:
        checks.check_range("partner_index", partner_index, -1, len(x))
