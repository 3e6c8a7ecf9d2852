"""rollout_row in Triton's interpreter. bf16 is left to the GPU: the interpreter's bf16 products are wrong."""

import pytest
import rollout_cases
import torch

from dca_triton.ops import triton_rollout


@pytest.mark.parametrize("case", rollout_cases.CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_error_is_that_of_the_dtype(case: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    rollout_cases.error_is_that_of_the_dtype(case, dtype, "cpu")


@pytest.mark.parametrize("scale", [0.1, 0.0])
def test_start_row_and_scale_count(scale: float) -> None:
    rollout_cases.start_row_and_scale_count(torch.float32, "cpu", scale)


def test_runs_are_bit_equal_and_leave_inputs_alone() -> None:
    rollout_cases.runs_are_bit_equal_and_leave_inputs_alone(torch.float16, "cpu")


def test_operator_does_what_a_direct_call_does() -> None:
    rollout_cases.operator_does_what_a_direct_call_does(torch.float16, "cpu")


def test_transposed_inputs_are_taken() -> None:
    rollout_cases.transposed_inputs_are_taken(torch.float32, "cpu")


def test_operator_is_registered_as_it_behaves() -> None:
    qs, ks, lses = rollout_cases.blocks(1, 17, 1, 16, 1, torch.float32, "cpu")
    torch.library.opcheck(torch.ops.dca_triton.rollout_row.default, (qs, ks, lses, 0.25, None))


def test_images_may_lie_more_than_2_to_the_31_elements_apart() -> None:
    """Three images 2^30 elements apart in memory that is never touched between them."""
    apart, (B, N, H, D) = 1 << 30, (3, 17, 1, 16)
    memory = torch.empty(2 * apart + N * H * D, dtype=torch.float16)
    far = memory.as_strided((B, N, H, D), (apart, H * D, D, 1))
    (near,), _, lses = rollout_cases.blocks(B, N, H, D, 1, torch.float16, "cpu")
    far.copy_(near)
    expected = triton_rollout.rollout_row([near], [near], lses, 0.25, None)
    assert torch.equal(triton_rollout.rollout_row([far], [far], lses, 0.25, None), expected)
