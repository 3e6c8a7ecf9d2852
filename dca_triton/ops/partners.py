"""Who is paired with whom, and the inverse: whose queries read the keys of an image."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import raise_faults
from . import checks


class Partners(NamedTuple):
    """Both directions of who is paired with whom.

    image (B,): the image that each row is paired with, -1 for none. reader[first[j]:first[j + 1]]: the rows
    that are paired with image j, ascending; reader (B,) and first (images + 1,), int64.
    """

    image: Tensor
    reader: Tensor
    first: Tensor

    def of(self, rows: Tensor) -> "Partners":
        """Those of the rows (K,) alone, inverted anew."""
        return inverted(self.image[rows], self.first.shape[0] - 1)


def partners(index: Tensor, images: int) -> Partners:
    """Check and invert an index of partners once for all blocks of a step.

    `pair_attention` takes the result as its partner_index. index (B,): int32 or int64 in [-1, images),
    repeats allowed, -1 for no partner; images: how many there are to choose from. Costs no host sync. Raises
    ValueError for another shape, dtype or range, every reason at once.
    """
    checks.check_tensors({"index": index})
    raise_faults(checks.partners(index, images))
    return inverted(index.clone(), images)  # a later change of index must not part it from its inverse


def inverted(index: Tensor, images: int) -> Partners:
    """`partners` of a checked index. Rows without a partner sort in front of first[0]."""
    image, reader = torch.sort(index, stable=True)
    bounds = torch.arange(images + 1, device=index.device, dtype=index.dtype)
    return Partners(index, reader, torch.searchsorted(image, bounds))
