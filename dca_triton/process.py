"""The rank and device of this process."""

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """Return the process with its rank and its device: its own GPU if there is one, else the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())
