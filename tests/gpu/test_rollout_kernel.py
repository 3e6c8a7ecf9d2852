"""rollout_row on a real GPU: what the interpreter proves, in every dtype."""

import pytest
import rollout_cases
import torch
from launches import EVERY_LAUNCH, group
from triton.runtime.errors import OutOfResources

from dca_triton.ops import launch_table

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no measured launch configurations")]

DTYPES = pytest.mark.parametrize("dtype", launch_table.DTYPES.values(), ids=str)


@DTYPES
@pytest.mark.parametrize("case", rollout_cases.CASES, ids=str)
def test_error_is_that_of_the_dtype(case: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    rollout_cases.error_is_that_of_the_dtype(case, dtype, "cuda")


@DTYPES
@pytest.mark.parametrize("scale", [0.1, 0.0])
def test_start_row_and_scale_count(dtype: torch.dtype, scale: float) -> None:
    rollout_cases.start_row_and_scale_count(dtype, "cuda", scale)


@pytest.mark.driver  # executed on a CPU under a dispatch mode, fp32 differs in the last bit
@DTYPES
def test_operator_does_what_a_direct_call_does(dtype: torch.dtype) -> None:
    rollout_cases.operator_does_what_a_direct_call_does(dtype, "cuda")


@DTYPES
def test_runs_are_bit_equal_and_leave_inputs_alone(dtype: torch.dtype) -> None:
    rollout_cases.runs_are_bit_equal_and_leave_inputs_alone(dtype, "cuda")


@DTYPES
def test_transposed_inputs_are_taken(dtype: torch.dtype) -> None:
    rollout_cases.transposed_inputs_are_taken(dtype, "cuda")


@EVERY_LAUNCH
def test_every_launch_agrees(name: str, warps: int, stages: int) -> None:
    """Every launch that the tuner may choose and that fits on the GPU; at least one tile must fit."""
    fit = 0
    for config in group(name, warps, stages):
        with launch_table.forced({("rollout_row", "step"): config}):
            try:
                rollout_cases.error_is_that_of_the_dtype(
                    (2, 197, 3, 64, 2), launch_table.DTYPES[name], "cuda"
                )
            except OutOfResources:
                continue
        fit += 1
    assert fit > 0
