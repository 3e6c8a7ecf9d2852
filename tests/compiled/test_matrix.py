"""Shipped configurations compile for every chip without spills, in a pairwise sample of all combinations.

Every pair of values of kernel, head dimension, dtype and chip occurs; `python -m bench.meter --matrix`
compiles all combinations. Head dimensions that differ in nothing but the constant in a mask count as one.
"""

import itertools
import math

import pytest

from bench.meter import gate, report
from dca_triton.ops import launch_table
from dca_triton.tuning.meter.assess import assess
from dca_triton.tuning.meter.chips import CHIPS
from dca_triton.tuning.meter.launches import Job

KERNELS = [(op, direction) for op, directions in launch_table.DIRECTIONS.items() for direction in directions]
DTYPES = list(launch_table.DTYPES)
# One head dimension for each padded width, with and without a mask, and alignment of the heads.
HEAD_DIMS = [
    *{
        (1 << (d - 1).bit_length(), d & (d - 1) == 0, math.gcd(d, 16)): d for d in launch_table.HEAD_DIMS
    }.values()
]


def case(job: Job) -> object:
    """Return a test case, expected to fail if every tile is known to spill."""
    known = [pytest.mark.xfail(strict=True, reason="spills with every tile")]
    return pytest.param(job, id=report.name_of(job), marks=known if gate.spills_by_necessity(job) else ())


def serves(arch: str, head_dim: int) -> bool:
    return head_dim in launch_table.head_dims(launch_table.Gpu(arch, arch))


def pairwise_jobs() -> list[Job]:
    jobs = []
    for a, arch in enumerate(CHIPS):
        for d, head_dim in enumerate(served for served in HEAD_DIMS if serves(arch, served)):
            op, direction = KERNELS[(a + d) % len(KERNELS)]
            key = launch_table.Key(op, direction, head_dim, DTYPES[(a + 2 * d) % len(DTYPES)])
            jobs.append(Job(key, 197, arch, report.shipped(key, 197, arch)))
    return jobs


JOBS = pairwise_jobs()


def test_every_pair_of_kernel_head_dim_dtype_and_chip_is_compiled() -> None:
    values = [((j.key.op, j.key.direction), j.key.head_dim, j.key.dtype, j.arch) for j in JOBS]
    for first, second in itertools.combinations(range(4), 2):
        met = {(value[first], value[second]) for value in values}
        all_first, all_second = ({value[i] for value in values} for i in (first, second))
        pairs = set(itertools.product(all_first, all_second))
        if (first, second) == (1, 3):
            pairs = {(head_dim, arch) for head_dim, arch in pairs if serves(arch, head_dim)}
        assert met == pairs
    assert {value[0] for value in values} == set(KERNELS)
    assert {value[1:] for value in values} <= set(itertools.product(HEAD_DIMS, launch_table.DTYPES, CHIPS))


@pytest.mark.parametrize("job", [case(job) for job in JOBS])
def test_compiles_without_spills_within_the_chip_on_the_tensor_cores(job: Job) -> None:
    assessment = assess(job)
    assert assessment.code.instructions > 0
    assert assessment.main
    assert gate.violations(job, assessment) == []


def test_heads_that_share_a_width_and_an_alignment_share_their_code() -> None:
    """Those of 72, 88 and 104 are like those of 80, whose strides Triton knows: it copies asynchronously."""
    figures = {}
    for head_dim in (72, 80):
        key = launch_table.Key("pair_attention", "forward", head_dim, "fp16")
        figures[head_dim] = report.figures_of(
            assess(Job(key, 197, "sm_90", report.shipped(key, 197, "sm_90")))
        )
    assert figures[72].async_copies > 0
    for field in ("registers", "spills", "shared", "tensor", "async_copies", "per_score"):
        assert getattr(figures[72], field) == getattr(figures[80], field), field


def test_the_matrix_holds_every_kernel_head_dim_dtype_and_chip() -> None:
    jobs = list(report.matrix_jobs())
    held = {(j.key.op, j.key.direction, j.key.head_dim, j.key.dtype, j.arch) for j in jobs}
    expected = itertools.product(KERNELS, launch_table.HEAD_DIMS, launch_table.DTYPES, CHIPS)
    assert held == {
        (op, direction, head_dim, dtype, arch)
        for (op, direction), head_dim, dtype, arch in expected
        if serves(arch, head_dim)
    }
