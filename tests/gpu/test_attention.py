"""Both attentions on a real GPU: what the interpreter proves, in every dtype and with every launch."""

import attention_cases
import pytest
import torch
from attention_cases import LOCAL, PAIRS, Local, Pairs
from launches import EVERY_LAUNCH, group
from triton.runtime.errors import OutOfResources

from dca_triton.ops import launch_table

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no measured launch configurations")]

DTYPES = pytest.mark.parametrize("dtype", launch_table.DTYPES.values(), ids=str)
BOTH = pytest.mark.parametrize(
    "case",  # two tiles or more of each kernel with every launch
    [Pairs(2, 197, 2, 64, (1, 1)), Local(2, 197, 2, 64, R=70, repeats=True)],
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
def test_operators_do_what_direct_calls_do(case: Pairs | Local) -> None:
    attention_cases.operators_do_what_direct_calls_do(case, torch.float16, "cuda")


@BOTH
def test_scores_far_below_zero(case: Pairs | Local) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, torch.float16, "cuda", apart=6.0)


@BOTH
def test_scale_of_0_gives_means(case: Pairs | Local) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, torch.float16, "cuda", scale=0.0)


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


@EVERY_LAUNCH
@BOTH
def test_every_launch_agrees(case: Pairs | Local, name: str, warps: int, stages: int) -> None:
    """Every launch that the tuner may choose and that fits on the GPU; at least one tile must fit."""
    op = "pair_attention" if isinstance(case, Pairs) else "local_attention"
    fit = 0
    for config in group(name, warps, stages):
        with launch_table.forced({(op, direction): config for direction in launch_table.DIRECTIONS[op]}):
            try:
                attention_cases.errors_are_those_of_the_dtype(case, launch_table.DTYPES[name], "cuda")
            except OutOfResources:
                continue
        fit += 1
    assert fit > 0


def test_forced_launches_reach_the_backward_pass() -> None:
    config = launch_table.Config(64, 64, 4, 2)
    with launch_table.forced({("pair_attention", "forward"): config}), pytest.raises(KeyError, match="dq"):
        attention_cases.backward_is_bit_equal(Pairs(2, 33, 1, 16), torch.float16, "cuda")
