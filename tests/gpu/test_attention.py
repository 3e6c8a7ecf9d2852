"""Both attentions on a real GPU: what the interpreter proves, in every dtype and with every launch."""

import attention_cases
import pytest
import torch
from attention_cases import LOCAL, PAIRS, Local, Pairs

from dca_triton import tuning
from dca_triton.ops import triton_backend
from dca_triton.tuner import candidates

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", tuning.DTYPES.values(), ids=str)
BOTH = pytest.mark.parametrize(
    "case", [Pairs(2, 197, 3, 64, (1, 1)), Local(2, 197, 3, 64, R=40, repeats=True)]
)


@DTYPES
@pytest.mark.parametrize("case", [*PAIRS, *LOCAL], ids=str)
def test_errors_are_those_of_the_dtype(case: Pairs | Local, dtype: torch.dtype) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, dtype, "cuda")


@DTYPES
@BOTH
def test_backward_is_bit_equal(case: Pairs | Local, dtype: torch.dtype) -> None:
    attention_cases.backward_is_bit_equal(case, dtype, "cuda")


@BOTH
def test_scores_far_below_zero(case: Pairs | Local) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, torch.float16, "cuda", apart=6.0)


@DTYPES
@BOTH
def test_expanded_gradient_is_taken(case: Pairs | Local, dtype: torch.dtype) -> None:
    attention_cases.expanded_gradient_is_taken(case, dtype, "cuda")


@DTYPES
def test_layout_does_not_count(dtype: torch.dtype) -> None:
    attention_cases.layout_does_not_count(Pairs(2, 65, 2, 64, (1, 0)), dtype, "cuda")


def test_lse_has_no_gradient() -> None:
    attention_cases.lse_has_no_gradient("cuda")


def test_directional_derivatives_agree() -> None:
    attention_cases.directional_derivatives_agree("cuda")


@pytest.mark.parametrize("config", candidates("fp16"), ids=str)
def test_every_launch_agrees(config: tuning.Config) -> None:
    directions = tuning.DIRECTIONS["pair_attention"]
    with tuning.forced({("pair_attention", direction): config for direction in directions}):
        attention_cases.errors_are_those_of_the_dtype(Pairs(3, 197, 2, 64, (1, -1, 1)), torch.float16, "cuda")


def test_results_past_32_bits() -> None:
    """The last image of a batch whose tensors hold more than 2^31 elements each."""
    B, N, H, D = 2**31 // (197 * 12 * 64) + 2, 197, 12, 64
    if torch.cuda.get_device_properties("cuda").total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    q = torch.randn(B, N, H, D, device="cuda", dtype=torch.float16, requires_grad=True)
    partner = torch.arange(B, device="cuda").flip(0)
    out, lse = triton_backend.pair_attention(q, q, q, None, None, partner, D**-0.5)
    (gradient,) = torch.autograd.grad(out, q, torch.ones_like(out))
    ends = q.detach()[[0, -1]].requires_grad_()
    swap = torch.tensor([1, 0], device="cuda")
    few, few_lse = triton_backend.pair_attention(ends, ends, ends, None, None, swap, D**-0.5)
    (few_gradient,) = torch.autograd.grad(few, ends, torch.ones_like(few))
    assert torch.equal(out[[0, -1]], few)
    assert torch.equal(lse[[0, -1]], few_lse)
    assert torch.equal(gradient[[0, -1]], few_gradient)
