"""Checks of a model's arguments and inputs."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..arguments import Rule, choice, flag, integer, number, optional, raise_faults, size, violations
from ..branches import BRANCHES, READOUTS, Branch
from ..ops.checks import check_tensors
from ..ops.values import INTEGERS, check_range, check_rows
from .backbone import Backbone
from .heads import HEADS
from .side_information import NO_SIDES, SideInformationEmbedding, Sides, side_faults

NUMBERS: Rule = (
    lambda v: _is_sequence(v) and all(type(n) is int and 0 <= n < 2**63 for n in v) and len({*v}) == len(v),
    "a list of different integers >= 0",
)
VALUE_RULES = {
    "backbone_name": (lambda v: isinstance(v, str), "a timm model's name"),
    "num_classes": integer(1),
    "task_type": choice("fgvc", "reid"),
    "num_sa_blocks": integer(1),
    "num_glca_blocks": integer(0),
    "num_pwca_blocks": integer(0),
    "embed_dim": optional(integer(1)),
    "num_heads": integer(1),
    "top_k_ratio": number(lambda v: 0 < v <= 1, "in (0, 1]"),
    "drop_rate": number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "drop_path_rate": number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "img_size": size(),
    "cache_attention_rollout": flag(),
    "layout": choice("reference", "paper"),
    "head": optional(choice(*HEADS)),
    "branches": (
        lambda v: _is_sequence(v) and all(b in BRANCHES for b in v) and "sa" in v and len({*v}) == len(v),
        f"a list of different branches out of {', '.join(BRANCHES)}, sa among them",
    ),
    "sa_readout": choice(*READOUTS),
    "glca_readout": choice(*READOUTS),
    "pwca_blocks": optional(
        (
            lambda v: (
                _is_sequence(v) and len(v) == 2 and all(type(n) is int for n in v) and 1 <= v[0] <= v[1]
            ),
            "a first and a last block, counted from 1",
        )
    ),
    "patch_stride": optional(integer(1)),
    "cameras": NUMBERS,
    "views": NUMBERS,
    "sie_weight": number(lambda v: v > 0, "a number > 0"),
    "pretrained": flag(),
    "backend": choice("auto", "triton", "torch"),
}


# What a layout takes for the sake of the reference's signature and does not use, with the defaults.
IGNORED: dict[str, dict[str, int | None]] = {
    "reference": {"num_pwca_blocks": 12, "embed_dim": None},
    "paper": {"num_sa_blocks": 12, "num_pwca_blocks": 12, "embed_dim": None, "num_heads": 12},
}


class IgnoredArgument(UserWarning):
    """A model's argument has no effect."""


def _is_sequence(value: object) -> bool:
    return isinstance(value, list | tuple)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for every argument of a model that is outside its range."""
    raise_faults(violations(arguments, VALUE_RULES))


def warn_of_ignored(arguments: Mapping[str, Any], present: Mapping[str, int]) -> None:
    """Warn of values that have no effect: neither the default nor what the model has anyway.

    Args:
        arguments: The model's.
        present: What the model has, by the name of the argument.
    """
    layout = arguments["layout"]
    ignored = [
        f"{name}={arguments[name]}"
        for name, default in IGNORED[layout].items()
        if arguments[name] not in (default, present[name])
    ]
    if ignored:
        text = f"{', '.join(ignored)} has no effect in layout={layout!r}: the model has "
        text += ", ".join(f"{present[name.partition('=')[0]]}" for name in ignored)
        warnings.warn(text, IgnoredArgument, stacklevel=3)


@contextlib.contextmanager
def silence_ignored() -> Iterator[None]:
    """Context manager: no warning of arguments that were written down by an earlier call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredArgument)
        yield


def check_pwca_blocks(pwca_blocks: tuple[int, int] | None, num_blocks: int) -> None:
    """Raise ValueError unless the blocks of PWCA exist."""
    if pwca_blocks is not None and pwca_blocks[1] > num_blocks:
        raise_faults([f"pwca_blocks must be in [1, {num_blocks}], the model's SA blocks, got {pwca_blocks}"])


def check_branches(branches: tuple[Branch, ...], backbone: Backbone, name: str) -> None:
    """Raise ValueError if the backbone cannot train a branch."""
    if not {*branches} <= {*backbone.branches}:
        raise_faults(
            [
                f"branches must be some of {', '.join(backbone.branches)} for {name}, "
                f"got {', '.join(branches)}: {backbone.missing}; "
                f"pass branches={[b for b in branches if b in backbone.branches]}"
            ]
        )


def check_rollout(backbone: Backbone) -> None:
    """Raise ValueError for a backbone that GLCA has no rollout of."""
    if "glca" not in backbone.branches:
        raise_faults([f"backbone_name must be a model with a rollout, got one without: {backbone.missing}"])


def check_heads(num_heads: int, width: int) -> None:
    """Raise ValueError unless the heads divide the backbone's width."""
    if width % num_heads:
        raise_faults([f"num_heads must be a divisor of the backbone's width, {width}, got {num_heads}"])


def check_inputs(
    backbone: Backbone,
    x: Tensor,
    x_pair: Tensor | None = None,
    partner_index: Tensor | None = None,
    takes_pairs: bool = True,
    sie: SideInformationEmbedding | None = None,
    sides: Sides = NO_SIDES,
    needs_sides: bool = False,
) -> None:
    """Raise ValueError for every input of `DualAttentionModel.forward` that does not fit."""
    check_tensors({"x": x}, x_pair=x_pair, partner_index=partner_index, **sides.named())
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
    if not takes_pairs and (x_pair is not None or partner_index is not None):
        faults.append("x_pair and partner_index must be None for a model without PWCA, got a pair")
    if x_pair is not None and partner_index is not None:
        faults.append("x_pair must be None where partner_index is given, got both")
    if partner_index is not None and (
        partner_index.shape != x.shape[:1] or partner_index.dtype not in INTEGERS
    ):
        faults.append(
            f"partner_index must be (B,) = {tuple(x.shape[:1])} in int32 or int64, "
            f"got {tuple(partner_index.shape)} in {partner_index.dtype}"
        )
    raise_faults(faults + side_faults(sie, x, x_pair, needs_sides, sides))
    for name, numbers in sides.named().items():
        if needs_sides and sie is not None and numbers is not None:
            kind = name.removeprefix("pair_")
            check_rows(name, f"of the model's {kind}, or negative", sie.strange(kind, numbers))
    if partner_index is not None:
        check_range("partner_index", partner_index, -1, len(x))
