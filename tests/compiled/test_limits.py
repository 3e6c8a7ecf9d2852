"""Cost limits of the shipped kernels on sm_80 and sm_90: D=64, 16-bit, lengths that no tile divides."""

import functools
import itertools

import pytest
import triton

from bench.meter import report
from dca_triton.ops import launch_table
from dca_triton.tuning.meter.assess import Assessment, assess
from dca_triton.tuning.meter.launches import Job

SHORT, LONG = 197, 785
# From Triton 3.9 on, every product of a loop has a fence of its own on sm_90, and its descriptors are moved
# again: 29 more instructions in an iteration of dkdv, 30 in one of dq.
FENCES = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)
LIMITS = [  # operation, kernels, with partner; the most thread-instructions per score in every main loop
    ("pair_attention", ("forward",), True, {"sm_80": 9.3, "sm_90": 7.2}),
    ("pair_attention", ("forward",), False, {"sm_80": 9.3, "sm_90": 7.2}),
    ("pair_attention", ("dkdv", "dq"), True, {"sm_80": 22.5, "sm_90": 16.0}),
    ("pair_attention", ("dkdv", "dq"), False, {"sm_80": 22.5, "sm_90": 16.0}),
    ("local_attention", ("forward",), False, {"sm_80": 11.0, "sm_90": 8.7}),
    ("rollout_row", ("step",), False, {"sm_80": 6.9, "sm_90": 5.2}),
]
EXECUTED = {SHORT: 1.4, LONG: 1.2}  # the most scores computed per score needed
CHIPS = ("sm_80", "sm_90")


@functools.cache
def assessed(op: str, direction: str, dtype: str, arch: str, pairs: bool) -> dict[int, Assessment]:
    """Those of both lengths, whose code is the same."""
    key = launch_table.Key(op, direction, 64, dtype)
    return {n: assess(Job(key, n, arch, report.shipped(key, n, arch), pairs)) for n in EXECUTED}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize(("op", "directions", "pairs", "limit"), LIMITS)
def test_instructions_per_score(
    op: str, directions: tuple[str, ...], pairs: bool, limit: dict[str, float], arch: str, dtype: str
) -> None:
    parts = [assessed(op, direction, dtype, arch, pairs)[LONG] for direction in directions]
    total = sum(part.per_score for part in parts)
    if FENCES and arch == "sm_90" and "dq" in directions and total > limit[arch]:
        pytest.xfail(f"Triton {triton.__version__} fences every product: {total:.1f} instructions per score")
    assert total <= limit[arch], [(part.job.config, part.per_score) for part in parts]
    for part in parts:
        assert not any(loop.spills for loop in part.code.loops)
        assert all(loop.async_copies for loop in part.main)
        assert all(loop.tensor for loop in part.code.loops)


@pytest.mark.parametrize("n", EXECUTED)
@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize(
    ("op", "direction", "pairs"),
    [("pair_attention", *rest) for rest in itertools.product(("forward", "dkdv", "dq"), (True, False))]
    + [("rollout_row", "step", False)],
)
def test_scores_executed_per_score_needed(op: str, direction: str, arch: str, n: int, pairs: bool) -> None:
    work = assessed(op, direction, "fp16", arch, pairs)[n].work
    assert work.useful > 0
    assert work.executed / work.useful <= EXECUTED[n]
