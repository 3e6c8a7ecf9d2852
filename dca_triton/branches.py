"""The names of DCAL's branches and of what is read from their tokens."""

from typing import Literal, get_args

Branch = Literal["sa", "glca", "pwca"]
Readout = Literal["class", "local", "both"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)
READOUTS: tuple[Readout, ...] = get_args(Readout)
