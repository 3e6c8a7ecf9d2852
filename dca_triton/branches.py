"""The names that arguments take: tasks, branches, what is read from their tokens, and distances."""

from typing import Literal, get_args

Task = Literal["fgvc", "reid"]
Branch = Literal["sa", "glca", "pwca"]
Readout = Literal["class", "local", "both"]
Metric = Literal["euclidean", "cosine"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)
READOUTS: tuple[Readout, ...] = get_args(Readout)
