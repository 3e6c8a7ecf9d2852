"""The compiler takes the instrumentation that tests/gpu/test_exact_arithmetic.py runs on a GPU."""

import pytest
import triton

from dca_triton.ops import launch_table
from dca_triton.tuning.meter.launches import Job, launch_of


@pytest.mark.skipif(not hasattr(triton.language, "expect_zero"), reason="needs Triton 3.8")
def test_exact_arithmetic_replaces_the_matrix_products() -> None:
    key = launch_table.Key("rollout_row", "step", 16, "fp16")
    launch = launch_of(Job(key, 33, "sm_80", launch_table.Config(16, 16, 1, 1)))
    plain = launch.compile("sm_80")
    launch.options["instrumentation_mode"] = "fpsan"
    exact = launch.compile("sm_80")
    assert "tt.dot" in plain.asm["ttgir"]
    assert "tt.dot" not in exact.asm["ttgir"]
    assert "fpsan" in exact.asm["ttgir"]
    assert plain.asm["cubin"] != exact.asm["cubin"]
