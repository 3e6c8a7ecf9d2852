"""Rules for arguments, as tables: name -> (test, words), and one way to report violations."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]


def raise_faults(faults: Iterable[str]) -> None:
    """Raise one ValueError that lists every fault, each once; do nothing if there are none."""
    if faults := list(dict.fromkeys(faults)):
        raise ValueError("; ".join(faults))


def violations(arguments: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Return "`name` must be <rule>, got <value>" for each argument that breaks its rule."""
    return [
        f"{name} must be {words}, got {shown(arguments[name])}"
        for name, (fits, words) in rules.items()
        if not fits(arguments[name])
    ]


def shown(value: object) -> str:
    """Return the repr of a value, or the kind of a tensor, in one line of about 200 characters at most."""
    torch = sys.modules.get("torch")  # not imported here, because the command line's help does not need it
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_nested or value.layout != torch.strided:
            return f"a tensor of layout {value.layout}"
        dtype = str(value.dtype).removeprefix("torch.")
        article = "an" if dtype.startswith("int") else "a"
        return f"{article} {dtype} tensor {tuple(value.shape)} on {value.device}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not print integers of more than 4300 digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "..."


def integer(least: int) -> Rule:
    """An integer >= `least`."""
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        f"an integer >= {least}",
    )


def number(fits: Callable[[float], bool], words: str) -> Rule:
    """A finite number that `fits`; integers too large for a float are refused."""

    def holds(v: Any) -> bool:
        if not isinstance(v, int | float) or isinstance(v, bool):
            return False
        if isinstance(v, int) and abs(v) > sys.float_info.max:
            return False
        return math.isfinite(v) and bool(fits(v))

    return holds, words


def choice(*names: str) -> Rule:
    """One of a few names."""
    return lambda v: isinstance(v, str) and v in names, " or ".join(map(repr, names))


def flag() -> Rule:
    """True or False."""
    return lambda v: isinstance(v, bool), "True or False"


def size() -> Rule:
    """A side length in pixels, or (height, width)."""
    fits, _ = integer(1)

    def both(v: Any) -> bool:
        return all(map(fits, v)) if isinstance(v, tuple) and len(v) == 2 else fits(v)

    return both, "an integer >= 1 or a tuple (height, width) of such integers"


def optional(rule: Rule) -> Rule:
    """None, or a value that the rule accepts."""
    fits, words = rule
    return lambda v: v is None or fits(v), f"{words} or None"
