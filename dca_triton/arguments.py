"""What arguments may be, as tables: name -> (test, words)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]


def violations(arguments: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """A sentence for each argument that breaks its rule."""
    return [
        f"{name} is {arguments[name]!r}; allowed is {words}"
        for name, (fits, words) in rules.items()
        if not fits(arguments[name])
    ]


def integer(least: int) -> Rule:
    """A whole number of at least `least`."""
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        f"a whole number of at least {least}",
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
    """Pixels of a side, or of (height, width)."""
    fits, _ = integer(1)

    def both(v: Any) -> bool:
        return all(map(fits, v)) if isinstance(v, tuple) and len(v) == 2 else fits(v)

    return both, "a number of pixels of at least 1, or (height, width)"


def optional(rule: Rule) -> Rule:
    """None, or what the rule allows."""
    fits, words = rule
    return lambda v: v is None or fits(v), f"{words}, or None"
