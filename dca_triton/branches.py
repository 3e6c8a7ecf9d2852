"""The names that arguments take: tasks, branches, readouts and distances; and what training measures."""

from typing import Literal, get_args

Task = Literal["fgvc", "reid"]
Branch = Literal["sa", "glca", "pwca"]
Readout = Literal["class", "local", "both"]
Metric = Literal["euclidean", "cosine"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)
READOUTS: tuple[Readout, ...] = get_args(Readout)
LOSSES = (*(f"{branch}_loss" for branch in BRANCHES), "total_loss")
LOSS_WEIGHTS = tuple(f"{branch}_loss_{part}" for branch in BRANCHES for part in ("weight", "log_var"))
# What training itself writes about an epoch; all else is of an evaluation.
TRAINING_METRICS = frozenset(("epoch", "lr", "loss_weights_lr", "skipped_steps", *LOSSES, *LOSS_WEIGHTS))
