"""Pairs of images: the partner of each image, and the inverse: the images that are paired with an image."""

from typing import NamedTuple

import torch
from torch import Tensor


class Partners(NamedTuple):
    """Pairs in both directions.

    partner (B,): the image that each row is paired with, -1 for none. readers[starts[j]:starts[j + 1]]: the
    rows that are paired with image j, ascending; readers (B,) and starts (images + 1,) are int64. unpaired:
    the number of leading rows that are known to have no partner without reading the index.
    """

    partner: Tensor
    readers: Tensor
    starts: Tensor
    unpaired: int = 0

    def of(self, rows: Tensor) -> "Partners":
        """Return the partners of the rows (K,) only."""
        return invert_pairs(self.partner[rows], self.starts.shape[0] - 1)

    def behind(self, images: int) -> "Partners":
        """Return the same pairs where as many other images come before those to choose from."""
        partner = torch.where(self.partner < 0, -1, self.partner + images)
        starts = torch.cat([self.starts[:1].expand(images), self.starts])
        return Partners(partner, self.readers, starts, self.unpaired)


def invert_pairs(index: Tensor, images: int, unpaired: int = 0) -> Partners:
    """Invert a checked index (B,). Rows without a partner come before starts[0]."""
    partner, readers = torch.sort(index, stable=True)
    bounds = torch.arange(images + 1, device=index.device, dtype=index.dtype)
    return Partners(index, readers, torch.searchsorted(partner, bounds), unpaired)
