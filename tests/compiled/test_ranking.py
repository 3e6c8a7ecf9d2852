"""A sample of the shipped configurations is what the cost model ranks first among its neighbors.

`python -m bench.meter --ranking` ranks all of them.
"""

from pathlib import Path

import pytest

from bench.meter import freshness
from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Key

SAMPLE = [
    ("sm_80", Key("rollout_row", "step", 64, "fp16")),
    ("gfx942", Key("local_attention", "forward", 64, "fp16")),
]


@pytest.mark.parametrize(("arch", "key"), SAMPLE)
def test_the_shipped_choice_is_ranked_first(arch: str, key: Key) -> None:
    assert freshness.stale(arch, [key]) == []


def test_a_choice_that_a_neighbor_beats_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, key = SAMPLE[0]
    (shipped,) = launch_table.modeled(arch)[key].values()
    worse = Config(shipped.block_m, shipped.block_n // 2, shipped.num_warps, shipped.num_stages)
    launch_table.write(tmp_path / f"{arch}.json", "static model", {key: {197: worse}})
    monkeypatch.setattr(launch_table, "CONFIGS", tmp_path)
    monkeypatch.setattr(freshness, "candidates", lambda dtype, arch: [shipped])
    (sentence,) = freshness.stale(arch)
    assert sentence.startswith("sm_80 rollout_row step with D=64, fp16 and 197 tokens: 64/64/4/2 takes ")
