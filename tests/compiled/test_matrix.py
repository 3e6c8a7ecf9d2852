"""Shipped configurations compile for every chip without spills, in a pairwise sample of all combinations.

Every pair of values of kernel, head dimension, dtype and chip occurs; `python -m bench.static --matrix`
compiles all combinations.
"""

import itertools

import pytest

from bench.static import gate, report
from dca_triton import tuning
from dca_triton.static.assess import assess
from dca_triton.static.chips import CHIPS
from dca_triton.static.problems import Job

KERNELS = [(op, direction) for op, directions in tuning.DIRECTIONS.items() for direction in directions]
DTYPES = list(tuning.DTYPES)


def case(job: Job) -> object:
    """Return a test case, expected to fail if every tile is known to spill."""
    known = [pytest.mark.xfail(strict=True, reason="spills with every tile")]
    return pytest.param(job, id=report.name_of(job), marks=known if gate.spills_by_necessity(job) else ())


def pairwise_jobs() -> list[Job]:
    jobs = []
    for (a, arch), (d, head_dim) in itertools.product(enumerate(CHIPS), enumerate(tuning.HEAD_DIMS)):
        op, direction = KERNELS[(a + d) % len(KERNELS)]
        key = tuning.Key(op, direction, head_dim, DTYPES[(a + 2 * d) % len(DTYPES)])
        jobs.append(Job(key, 197, arch, report.shipped(key, 197, arch)))
    return jobs


JOBS = pairwise_jobs()


def test_every_pair_of_kernel_head_dim_dtype_and_chip_is_compiled() -> None:
    values = [((j.key.op, j.key.direction), j.key.head_dim, j.key.dtype, j.arch) for j in JOBS]
    for first, second in itertools.combinations(range(4), 2):
        met = {(value[first], value[second]) for value in values}
        all_first, all_second = ({value[i] for value in values} for i in (first, second))
        assert met == set(itertools.product(all_first, all_second))
    assert {value[0] for value in values} == set(KERNELS)
    assert {value[1:] for value in values} <= set(itertools.product(tuning.HEAD_DIMS, tuning.DTYPES, CHIPS))


@pytest.mark.parametrize("job", [case(job) for job in JOBS])
def test_compiles_without_spills_within_the_chip_on_the_tensor_cores(job: Job) -> None:
    assessment = assess(job)
    assert assessment.code.instructions > 0
    assert assessment.main
    assert gate.violations(job, assessment) == []


def test_the_matrix_holds_every_kernel_head_dim_dtype_and_chip() -> None:
    jobs = list(report.matrix_jobs())
    held = {(j.key.op, j.key.direction, j.key.head_dim, j.key.dtype, j.arch) for j in jobs}
    wanted = itertools.product(KERNELS, tuning.HEAD_DIMS, tuning.DTYPES, CHIPS)
    assert held == {(op, direction, *rest) for (op, direction), *rest in wanted}
