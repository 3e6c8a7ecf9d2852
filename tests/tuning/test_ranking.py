"""The cost model's ranking of configurations, with made-up times and with compiled kernels."""

import math
from types import SimpleNamespace

import pytest
from tuning_cases import KEY

from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Key
from dca_triton.tuning import ranking
from dca_triton.tuning.meter.assess import Assessment
from dca_triton.tuning.meter.launches import Job

A, B, C, D = (Config(64, 64, warps, stages) for warps in (4, 8) for stages in (1, 2))
PAIR = Key("pair_attention", "dq", 64, "fp16")


def assessed(job: Job, clocks: float) -> Assessment:
    unused: SimpleNamespace = SimpleNamespace()
    return Assessment(job, unused, unused, 1, clocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx1100"])
@pytest.mark.parametrize("dtype", launch_table.DTYPES)
def test_candidates_are_distinct(dtype: str, arch: str) -> None:
    tried = ranking.candidates(dtype, arch)
    assert len(set(tried)) == len(tried) >= 10


def test_the_fastest_that_serves_both_kinds_of_partners_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {A: (3.0, 3.0), B: (1.0, math.inf), C: (2.0, 9.0), D: (math.inf, 1.0)}  # in the batch, separate

    def assess_all(jobs: list[Job], progress: bool) -> list:
        return [(job, assessed(job, times[job.config][job.separate])) for job in jobs]

    monkeypatch.setattr(ranking, "assess_all", assess_all)
    found = ranking.order("sm_90", {(PAIR, 197): [A, B, C, D], (KEY, 197): [A, B, C, D]})
    assert [x.job.config for x in found[PAIR, 197]] == [C, A]
    assert [x.job.config for x in found[KEY, 197]] == [B, C, A]
    assert not any(x.job.separate for ranked in found.values() for x in ranked)


def test_a_kernel_that_never_compiles_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def assess_all(jobs: list[Job], progress: bool) -> list:
        return [(job, NameError("a fault in the kernel")) for job in jobs]

    monkeypatch.setattr(ranking, "assess_all", assess_all)
    with pytest.raises(RuntimeError, match="no candidate compiles for sm_90 for rollout_row step") as error:
        ranking.order("sm_90", {(KEY, 197): [A, B]})
    assert isinstance(error.value.__cause__, NameError)


def test_neighbors_differ_in_one_number_by_a_factor_of_two() -> None:
    tried = [Config(64, 64, 4, 1), Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(16, 64, 4, 1)]
    tried += [Config(128, 64, 4, 1), Config(64, 64, 8, 1), Config(64, 64, 4, 2), Config(64, 32, 8, 1)]
    near = [Config(64, 32, 4, 1), Config(128, 64, 4, 1), Config(64, 64, 8, 1), Config(64, 64, 4, 2)]
    assert ranking.neighbors(Config(64, 64, 4, 1), tried) == near
