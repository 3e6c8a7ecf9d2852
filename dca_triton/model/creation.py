"""Create timm's models, with or without pretrained weights; errors say what to do."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import load_pretrained

from ..arguments import raise_faults
from .families import family_of, layout_faults
from .family import TimmModule
from .overlap import Overlap, overlap_of


class FreshWeights(UserWarning):
    """The file of pretrained weights lacks some that the model has; these keep their random values."""


def create(
    name: str,
    layout: str,
    pretrained: bool,
    img_size: int | tuple[int, int],
    patch_stride: int | None,
    kwargs: dict[str, Any],
) -> tuple[TimmModule, Overlap | None]:
    """The timm model, and the geometry of its patches if they are to overlap; its stride is not set yet.

    Arguments and errors are those of `Backbone`.
    """
    if not timm.is_model(name):
        raise_faults([f"backbone_name must be a timm model (see timm.list_models('*vit*')), got {name!r}"])
    options = {"num_classes": 0, "img_size": img_size, **kwargs}
    model: TimmModule
    overlap: Overlap | None = None
    faults: list[str] = []
    # Faults of the model show before its weights are read.
    without_weights = layout == "paper" and (pretrained or bool(options.get("checkpoint_path")))
    try:
        if patch_stride is not None:
            overlap = overlap_of(name, patch_stride, kwargs)
            if not (faults := overlap.faults(both_sides(img_size))):
                options["img_size"] = overlap.side_by_side(both_sides(img_size))
        if without_weights:
            with torch.device("meta"):
                model = timm.create_model(name, **options | {"checkpoint_path": None})
        else:
            model = timm.create_model(name, **options)
        reasons = layout_faults(model, layout)
    except Exception as error:  # timm's constructors raise nearly any error for wrong arguments
        with torch.device("meta"):
            plain = timm.create_model(name)
        reasons = layout_faults(plain, layout)
        if not reasons or family_of(plain) is not None:  # no argument makes another class fit
            reasons = [str(error) or type(error).__name__, *reasons]
    if reasons:
        raise_faults(
            [
                f"backbone_name must be a timm model that layout={layout!r} can use, "
                f"got {name!r}: {'; '.join(reasons)}"
            ]
        )
    raise_faults(faults or size_faults("img_size", tuple(model.patch_embed.img_size), patch_of(model)))
    if not (pretrained or without_weights):
        return model, overlap
    try:
        with _missing_weights_warned():
            return _with_weights(name, pretrained, options, model), overlap
    except Exception as error:
        raise RuntimeError(
            f"pretrained weights of {name!r} could not be loaded "
            f"({type(error).__name__}: {_first_lines(error)}); pass a local file with "
            "pretrained_cfg_overlay=dict(file='weights.safetensors') "
            "or start from scratch with pretrained=False"
        ) from error


def _with_weights(name: str, pretrained: bool, options: dict[str, Any], like: TimmModule) -> TimmModule:
    """The timm model `like`, with its pretrained weights if they are asked for."""
    family = family_of(like)
    own_filter = None if family is None else family.checkpoint_filter
    if not pretrained or own_filter is None or options.get("checkpoint_path"):
        return timm.create_model(name, pretrained=pretrained, **options)
    model: TimmModule = timm.create_model(name, **options)
    load_pretrained(
        model,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        filter_fn=own_filter,
        cache_dir=options.get("cache_dir"),
    )
    return model


@contextmanager
def _missing_weights_warned() -> Iterator[None]:
    """Warn of what timm's own log tells at a level that few programs show."""
    logger = logging.getLogger(load_pretrained.__module__)
    level, shown = logger.level, logger.getEffectiveLevel()
    messages: list[str] = []

    def read(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return record.levelno >= shown

    logger.addFilter(read)
    logger.setLevel(min(shown, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeFilter(read)
    for message in messages:
        if message.startswith("Missing keys ("):
            names = message.partition("(")[2].partition(")")[0]
            text = f"the pretrained weights lack {names}; these start from random values"
            warnings.warn(text, FreshWeights, stacklevel=6)


def both_sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size."""
    return (img_size, img_size) if isinstance(img_size, int) else img_size


def patch_of(model: TimmModule) -> tuple[int, int]:
    """Height and width in pixels of one token, including the stride of a CNN stem."""
    embed = model.patch_embed
    height, width = embed.feat_ratio(as_scalar=False) if hasattr(embed, "feat_ratio") else embed.patch_size
    return height, width


def size_faults(name: str, size: tuple[int, ...], patch: tuple[int, int]) -> list[str]:
    """Return a sentence with the nearest sizes if the patch does not divide the size (height, width)."""
    if not any(s % p for s, p in zip(size, patch, strict=True)):
        return []
    smaller, larger = (
        tuple(max(1, around(s / p)) * p for s, p in zip(size, patch, strict=True))
        for around in (math.floor, math.ceil)
    )
    return [
        f"{name} must be (height, width) in multiples of the patch {patch}, "
        f"such as {smaller} or {larger}, got {tuple(size)}"
    ]


def _first_lines(error: Exception) -> str:
    """Two of them: the first says that weights do not fit, the second names one."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or "no message"
