"""Models from files that nobody vouches for: nothing is executed, and no memory is taken in vain."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import raise_faults, shown, violations
from .checks import VALUE_RULES, silence_ignored

MAX_CONFIG_BYTES = 2**20


def read_config(file: Path, name: str) -> dict[str, Any]:
    """The constructor's arguments in the config.json of the model `name`.

    Raises:
        ValueError: It is not a file of at most `MAX_CONFIG_BYTES` with a JSON object.
    """
    if not file.is_file():
        raise ValueError(f"config.json of {name} must be a file, got a folder, a device, a pipe or nothing")
    if (size := file.stat().st_size) > MAX_CONFIG_BYTES:
        raise ValueError(f"config.json of {name} must be of at most {MAX_CONFIG_BYTES} bytes, got {size}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.json of {name} must be a JSON object, got other text ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {name} must be a JSON object, got {shown(config)}")
    return config


def evaluation_weights(path: Path, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights that training's own scores are of: averaged where the run has them.

    Args:
        path: The checkpoint's file, for errors.
        state: What it holds; a bare state dict is returned as it is.

    Raises:
        ValueError: They are not a mapping of tensors.
    """
    averaged = state.get("ema_state_dict") is not None
    name = "ema_state_dict" if averaged else "model_state_dict"
    weights = state.get(name, state)
    if not isinstance(weights, Mapping):
        raise ValueError(f"{name} of checkpoint {path} must be a dict of tensors, got {shown(weights)}")
    return weights


def sizes_of(weights: Mapping[str, Any]) -> list[int]:
    """How many values each tensor has."""
    return [value.numel() for value in weights.values() if isinstance(value, Tensor)]


def build(cls: Any, arguments: Mapping[str, Any], options: Mapping[str, Any], source: str) -> Any:
    """The model of these arguments, never pretrained, since its weights come next.

    Args:
        cls: The model's class.
        arguments: Read from `source`, of any types.
        options: The caller's own, which override them.
        source: Named in errors.

    Raises:
        ValueError: The options are outside their range, or the arguments do not fit.
    """
    raise_faults(violations(options, {name: rule for name, rule in VALUE_RULES.items() if name in options}))
    given = {k: v for k, v in {**arguments, **options}.items() if k != "pretrained"}
    if isinstance(given.get("img_size"), list):  # JSON knows no tuples
        given["img_size"] = tuple(given["img_size"])
    try:
        with silence_ignored():
            try:
                return cls(**given, pretrained=False)
            except TypeError as error:
                if "'pretrained'" not in str(error):
                    raise
                return cls(**given)  # a subclass that takes none, or gives it itself
    except Exception as error:  # untrusted values of any type reach timm's constructors
        source += f" with {', '.join(options)} of the call" if options else ""
        raise ValueError(f"{source} does not fit: {str(error) or type(error).__name__}") from error


def check_size(
    cls: Any, arguments: Mapping[str, Any], options: Mapping[str, Any], sizes: Sequence[int], source: str
) -> None:
    """Refuse arguments whose model is far larger than its weights, before memory for it is taken."""
    given = {**arguments, **options}
    counts = [given.get(key) for key in ("depth", "num_sa_blocks", "num_glca_blocks")]
    held = sum(sizes)
    with torch.device("meta"):
        if any(isinstance(n, int) and n > len(sizes) for n in counts):
            needed: float = math.inf
        else:
            model = build(cls, arguments, options, source)
            needed = sum(value.numel() for value in model.state_dict().values())
    if needed > 2 * held:
        raise ValueError(f"{source} must fit its weights of {held} values, got a model of {needed} values")


def with_ties(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Add the names that safetensors leaves out because they share their tensor with another name."""
    own = model.state_dict()
    names: dict[tuple, list[str]] = {}
    for key, value in own.items():
        names.setdefault(_place(value), []).append(key)
    filled = dict(weights)
    for key, value in own.items():
        twin = next((n for n in names[_place(value)] if n in weights), None)
        if key not in weights and twin is not None:
            filled[key] = weights[twin]
    return filled


def _place(value: Tensor) -> tuple:
    return value.data_ptr(), value.shape, value.stride()
