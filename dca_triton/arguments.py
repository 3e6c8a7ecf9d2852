"""Rules for arguments, as tables: name -> (test, words), and one way to report violations."""

import math
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
        f"{name} must be {words}, got {arguments[name]!r}"
        for name, (fits, words) in rules.items()
        if not fits(arguments[name])
    ]


def integer(least: int) -> Rule:
    """An integer >= `least`."""
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        f"an integer >= {least}",
    )


def number(fits: Callable[[float], bool], words: str) -> Rule:
    """A finite number that `fits`."""
    return (
        lambda v: (
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and bool(fits(v))
        ),
        words,
    )


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
