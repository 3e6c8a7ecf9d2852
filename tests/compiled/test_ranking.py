"""A sample of the shipped configurations is what the cost model ranks first among its neighbors.

`python -m bench.meter --ranking` ranks all of them.
"""

import math
import re
from types import SimpleNamespace

import pytest
from assessments import assess_here

from bench.meter import freshness
from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Key
from dca_triton.tuning import ranking

SAMPLE = [
    ("sm_80", Key("rollout_row", "step", 64, "fp16")),
    ("gfx942", Key("rollout_row", "step", 64, "fp16")),
]


@pytest.mark.parametrize(("arch", "key"), SAMPLE)
def test_the_shipped_choice_is_ranked_first(arch: str, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "assess_all", assess_here)
    assert freshness.stale(arch, [key]) == []


@pytest.mark.parametrize(
    ("short", "long", "times"),
    [
        (1.05, 1.0, "197 tokens: .* takes 1.05 times"),
        (1.0, 1.2, "785 tokens: .* takes 1.20 times"),
        (math.inf, math.inf, "197 tokens: .* takes inf times"),
        (1.2, 0.9, None),
        (1.02, 1.02, None),
    ],
)
def test_a_choice_that_a_neighbor_beats_is_named(
    short: float, long: float, times: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """short, long: how many times as long the shipped choice takes as one neighbor, with 197 and 785."""
    arch, key = SAMPLE[0]
    (shipped,) = launch_table.modeled(arch)[key].values()
    better = Config(shipped.block_m, shipped.block_n, shipped.num_warps, 3 - shipped.num_stages)

    def order(arch: str, tried: dict, progress: bool) -> dict:
        ratio = {197: short, 785: long}
        clocks = {n: {shipped: ratio[n], better: 1.0} for n in ratio}
        return {
            (key, n): [
                SimpleNamespace(job=SimpleNamespace(config=c), clocks=clocks[n].get(c, 9.0))
                for c in tried[key, n]
            ]
            for n in ratio
        }

    monkeypatch.setattr(freshness, "order", order)
    found = freshness.stale(arch, [key])
    assert bool(found) == (times is not None)
    assert times is None or re.search(times, found[0])
