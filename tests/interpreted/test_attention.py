"""Both attentions, forward and backward, interpreted on a CPU.

bfloat16 is left to the GPU: its tl.dot is wrong in the interpreter.
"""

import mmap
from functools import partial
from types import ModuleType

import attention_cases
import layout_cases
import pytest
import torch
from attention_cases import LOCAL, PAIRS, Local, Pairs
from torch import Tensor
from torch.autograd import forward_ad

from dca_triton import ops, reference
from dca_triton.ops import Attention, triton_backend
from dca_triton.ops.pairing import invert_pairs

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
BOTH = pytest.mark.parametrize("case", [Pairs(2, 33, 1, 16, (1, 1)), Local(2, 33, 1, 16, R=9, repeats=True)])


@DTYPES
@pytest.mark.parametrize("case", [*PAIRS, *LOCAL], ids=str)
def test_errors_are_those_of_the_dtype(case: Pairs | Local, dtype: torch.dtype) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, dtype, "cpu")


@BOTH
def test_backward_is_bit_equal(case: Pairs | Local) -> None:
    attention_cases.backward_is_bit_equal(case, torch.float16, "cpu")


@BOTH
def test_operators_do_what_direct_calls_do(case: Pairs | Local) -> None:
    attention_cases.operators_do_what_direct_calls_do(case, torch.float16, "cpu")


@BOTH
def test_second_derivatives_are_refused(case: Pairs | Local) -> None:
    attention_cases.second_derivatives_are_refused(case, "cpu")


@BOTH
def test_scores_far_below_zero(case: Pairs | Local) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, torch.float16, "cpu", apart=6.0)


@BOTH
def test_scale_of_0_gives_means(case: Pairs | Local) -> None:
    attention_cases.errors_are_those_of_the_dtype(case, torch.float16, "cpu", scale=0.0)


@BOTH
def test_expanded_gradient_is_taken(case: Pairs | Local) -> None:
    attention_cases.expanded_gradient_is_taken(case, torch.float32, "cpu")


def test_layout_does_not_count() -> None:
    attention_cases.layout_does_not_count(Pairs(2, 17, 2, 16, (1, 0)), torch.float16, "cpu")


@DTYPES
@pytest.mark.parametrize("operation", ["pairs", "local", "rollout"])
def test_any_layout(operation: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        layout_cases.agrees(getattr(layout_cases, operation), seed, dtype, "triton", [16, 48])


def test_lse_has_no_gradient() -> None:
    attention_cases.lse_has_no_gradient("cpu")


def test_undefined_gradient_is_taken() -> None:
    attention_cases.undefined_gradient_is_taken("cpu")


def test_directional_derivatives_agree() -> None:
    attention_cases.directional_derivatives_agree("cpu")


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 2, 1, 16), (2**31 + 64, 16, 16, 1)), ((1, 130, 1, 16), (1, 2**24 - 1, 16, 1))],
    ids=["images", "rows"],
)
def test_addresses_pass_32_bits(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Offsets of 2^31 elements and more, in memory that is mapped and, but for the rows, never touched."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    assert elements > 2**31
    mapped = mmap.mmap(-1, 2 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    x = torch.frombuffer(mapped, dtype=torch.float16).as_strided(shape, strides)
    x.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    dense, partner = x.clone(memory_format=torch.contiguous_format), torch.arange(shape[0]).flip(0)
    results = []
    for leaf in (x, dense):
        leaf.requires_grad_()
        out, lse = triton_backend.pair_attention(Attention(leaf, leaf, leaf, pairs=partner, scale=0.25))
        results.append((out, lse, *torch.autograd.grad(out, leaf, torch.ones_like(out))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # raised by torch's own check
def test_operators_pass_opcheck() -> None:
    q, k, v, k2, v2 = (torch.randn(2, 3, 2, 16, requires_grad=True) for _ in range(5))
    turned = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    pairs, rows = invert_pairs(torch.tensor([1, 0]), 2)[:3], torch.tensor([[1, 2], [0, 2]])
    none = None, None, None
    forward, backward = (
        torch.ops.dca_triton.attention.default,
        torch.ops.dca_triton.attention_backward.default,
    )
    for op, *tensors in (
        ("pair_attention", turned, k, v, None, None, *pairs, None),
        ("pair_attention", q, k, v, k2, v2, *pairs, None),
        ("local_attention", turned, k, v, None, None, *none, rows),
    ):
        torch.library.opcheck(forward, (op, *tensors, 0.25))
        out, lse = (x.detach() for x in forward(op, *tensors, 0.25))
        leaves = [x if x is None else x.detach() for x in tensors]
        arguments = (op, out, *leaves, out, lse, 0.25)
        torch.library.opcheck(backward, arguments, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # raised by torch.func
def test_forward_mode_is_refused() -> None:
    """Tangents would be lost silently."""
    q, k, v = (torch.randn(2, 9, 1, 16) for _ in range(3))
    for operation in (ops.pair_attention, ops.local_attention):
        call = partial(operation, k=k, v=v, backend="triton")
        call(q)
        with pytest.raises(RuntimeError, match="the kernels have no derivatives in forward mode"):
            torch.func.jvp(lambda q, call=call: call(q), (q,), (q,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode"):
            call(forward_ad.make_dual(q, q))


def test_compiles_to_one_graph() -> None:
    q, k, v = (torch.randn(2, 9, 1, 16, requires_grad=True) for _ in range(3))
    partner, index = torch.tensor([1, 0]), torch.tensor([[1, 3], [0, 8]])

    def loss(backend: ModuleType, **options: str) -> Tensor:
        out, _ = backend.pair_attention(q, k, v, partner_index=partner, scale=0.25, **options)
        return out.square().sum() + backend.local_attention(q, k, v, index, 0.25, **options).sum()

    value = torch.compile(lambda: loss(ops, backend="triton"), fullgraph=True, backend="aot_eager")()
    expected = loss(reference)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, [q, k, v]) for x in (value, expected)))
