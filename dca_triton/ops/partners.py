"""Pairs of images: the partner of each image and, inverted, the images that have an image as partner."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import raise_faults
from . import checks


class Partners(NamedTuple):
    """Pairs in both directions.

    image (B,): the image that each row is paired with, -1 for none. reader[first[j]:first[j + 1]]: the rows
    that are paired with image j, ascending; reader (B,) and first (images + 1,) are int64.
    """

    image: Tensor
    reader: Tensor
    first: Tensor

    def of(self, rows: Tensor) -> "Partners":
        """The partners of the rows (K,) alone."""
        return inverted(self.image[rows], self.first.shape[0] - 1)


def partners(index: Tensor, images: int) -> Partners:
    """Check and invert an index of partners once for all blocks of a step.

    `pair_attention` takes the result as its partner_index. This costs no host sync.

    Args:
        index: The partner of each row (B,), int32 or int64 in [-1, images); repeats are allowed, -1 means no
            partner.
        images: The number of images to choose from.

    Raises:
        ValueError: Wrong shape, dtype or values, every reason at once.
    """
    checks.check_tensors({"index": index})
    raise_faults(checks.partners(index, images))
    checks.Range("index", index, -1, images).assert_values()
    return inverted(index.clone(), images)  # so that a later change of index cannot make the two disagree


def inverted(index: Tensor, images: int) -> Partners:
    """`partners` of a checked index. Rows without a partner come before first[0]."""
    image, reader = torch.sort(index, stable=True)
    bounds = torch.arange(images + 1, device=index.device, dtype=index.dtype)
    return Partners(index, reader, torch.searchsorted(image, bounds))
