"""Assessments of a few jobs without the processes of `assess_all`, which are slow to start."""

from collections.abc import Iterator, Sequence

from dca_triton.tuning.meter.assess import Assessment, assess
from dca_triton.tuning.meter.launches import Job


def assess_here(jobs: Sequence[Job], progress: bool = False) -> Iterator[tuple[Job, Assessment | Exception]]:
    """What `assess_all` yields, one job after another in this process."""
    for job in jobs:
        try:
            yield job, assess(job)
        except Exception as error:
            yield job, error
