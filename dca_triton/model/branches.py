"""The branches of DCAL: their names, and what their heads read."""

from typing import Literal, get_args

Branch = Literal["sa", "glca", "pwca"]
Readout = Literal["class", "local", "both"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)
READOUTS: tuple[Readout, ...] = get_args(Readout)


def width_of(readout: Readout, C: int) -> int:
    """Features of a branch's embedding."""
    return 2 * C if readout == "both" else C
