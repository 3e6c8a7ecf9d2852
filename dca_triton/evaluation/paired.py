"""Scores of several variants over the same seeds: means, deviations, and paired differences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from ..arguments import raise_faults

Scores = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        deviation: The standard deviation over the seeds, with n - 1 in the denominator; None for one seed.
        count: The number of seeds, n.
    """

    mean: float
    deviation: float | None
    count: int

    @property
    def error(self) -> float | None:
        """The standard error of the mean, deviation / sqrt(n); None for one seed."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


def estimate(scores: Scores) -> Estimate | None:
    """Return the mean and the deviation over the seeds; None if there are no seeds."""
    if not scores:
        return None
    values = list(scores.values())
    return Estimate(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired_differences(variants: Mapping[str, Scores]) -> dict[str, Estimate | None]:
    """Compare each variant with the first one by the differences of their scores at equal seeds.

    An effect of a seed on all variants, such as an easy or a hard split, cancels in a difference. The
    standard error is therefore that of the differences, not that of two independent means.

    Args:
        variants: The scores of each variant by seed. A seed that one of the two lacks does not count.

    Returns:
        For each variant but the first, the mean difference (positive: better than the first); None if the
        two have no seed in common.

    Raises:
        ValueError: There is no variant.
    """
    if not variants:
        raise_faults(["variants must hold at least one variant, got none"])
    (_, first), *others = variants.items()
    return {
        name: estimate({seed: scores[seed] - first[seed] for seed in scores if seed in first})
        for name, scores in others
    }
