"""Two processes: FSDP2 with a unit per block gives DDP's gradients; DDP without pairs trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found() -> dict:
    program = Path(__file__).parent / "sharded_blocks.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["paper", "reference"])
@pytest.mark.parametrize("rows", ["all", "class"])
def test_a_unit_per_block_gives_the_gradients_of_ddp(found: dict, layout: str, rows: str) -> None:
    for each in found[f"{layout}, {rows}"]:
        assert each["sharded"] > 0 and each["error"] < 1e-9, each


@pytest.mark.parametrize("layout", ["paper", "reference"])
def test_ddp_without_pairs_trains_with_a_frozen_pwca_head(found: dict, layout: str) -> None:
    assert found[f"{layout}, no pairs"] == [True, True]
