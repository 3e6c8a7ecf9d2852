"""This process among those of a launch."""

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """The process with its rank and its device: a GPU of its own if there is one, else the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())
