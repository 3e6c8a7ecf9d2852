"""What a branch's head reads from its tokens."""

import torch
from torch import Tensor

from ..branches import Readout


def width_of(readout: Readout, C: int) -> int:
    """Features of a branch's embedding."""
    return 2 * C if readout == "both" else C


def read_out(tokens: Tensor, local: Tensor, readout: Readout) -> Tensor:
    """The embedding of a branch.

    Args:
        tokens: (B, M, C), the class token first.
        local: The rows to average (B, R, C); not read by "class".
        readout: "class": the class token (B, C). "local": the mean of the local rows (B, C). "both": the two
            side by side (B, 2C).
    """
    if readout == "class":
        return tokens[:, 0]
    mean = local.mean(1)
    return mean if readout == "local" else torch.cat([tokens[:, 0], mean], 1)
