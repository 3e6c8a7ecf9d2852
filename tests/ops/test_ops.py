"""The public operations on the torch backend, against `dca_triton.reference` in float64."""

from collections.abc import Callable

import pytest
import torch
from ops_cases import B, D, H, layers, normal, packed
from tolerance import no_further_than_twice_eager
from torch import Tensor
from torch.autograd import gradcheck

from dca_triton import ops, reference
from dca_triton.ops import Attention, torch_backend

LENGTHS = [1, 16, 63, 129, 197]
IN_BATCH = [None, (-1, -1, -1, -1), (2, 0, 3, 1), (1, 1, 1, 1), (-1, 0, -1, 3), (0, -1, 2, -1)]
ELSEWHERE = [(-1, -1, -1, -1), (5, 0, 3, 1), (4, 4, 4, 4), (-1, 5, -1, 5), (3, 0, -1, -1)]
INTEGERS = [torch.int32, torch.int64]


def partners(index: tuple[int, ...] | None, dtype: torch.dtype = torch.int64) -> Tensor | None:
    return None if index is None else torch.tensor(index, dtype=dtype)


def pair(
    function: Callable[..., tuple[Tensor, Tensor]], leaves: list[Tensor], M: int, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v = leaves[0].unbind(2)
    others = leaves[1].unbind(2) if len(leaves) > 1 else (None, None)
    return function(q[:, :M], k, v, *others, index, 0.4)


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = normal(*out.shape, seed=9, dtype=out.dtype)
    return torch.autograd.grad((out * weights).sum(), leaves, materialize_grads=True)


def required(*leaves: Tensor) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in leaves]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize("index", IN_BATCH)
def test_pairs_of_the_batch(N: int, index: tuple[int, ...] | None) -> None:
    leaves = required(packed(B, N, 3))
    for M in {N, 1, (N + 1) // 2}:
        out, lse = pair(ops.pair_attention, leaves, M, partners(index))
        expected, expected_lse = pair(reference.pair_attention, leaves, M, partners(index))
        close(out, expected)
        close(lse, expected_lse.detach())
        assert out.is_contiguous()
        close(gradients(out, leaves)[0], gradients(expected, leaves)[0])


@pytest.mark.parametrize("others", [1, 50, 129])
@pytest.mark.parametrize("N", [16, 63])
@pytest.mark.parametrize("index", ELSEWHERE)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_partners_of_another_batch_and_length(
    others: int, N: int, index: tuple[int, ...], dtype: torch.dtype
) -> None:
    leaves = required(packed(B, N, 3), packed(6, others, 2, seed=1))
    out, lse = pair(ops.pair_attention, leaves, N, partners(index, dtype))
    expected, expected_lse = pair(reference.pair_attention, leaves, N, partners(index))
    close(out, expected)
    close(lse, expected_lse.detach())
    assert out.is_contiguous()
    for actual, exact in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        close(actual, exact)


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_local_rows_with_repeats(N: int, dtype: torch.dtype) -> None:
    leaves = required(packed(B, N, 3))
    q, k, v = leaves[0].unbind(2)
    for R in {1, N, 2 * N}:
        index = torch.randint(N, (B, R), generator=torch.Generator().manual_seed(R))
        out = ops.local_attention(q, k, v, index.to(dtype))
        expected = reference.local_attention(q, k, v, index)
        close(out, expected)
        assert out.is_contiguous()
        close(gradients(out, leaves)[0], gradients(expected, leaves)[0])


def test_local_queries_without_index_are_all_of_q() -> None:
    q, (k, v) = normal(B, 7, H, D), packed(B, 63, 2, seed=1).unbind(2)
    close(ops.local_attention(q, k, v, scale=0.3), reference.local_attention(q, k, v, scale=0.3))


def test_scale_is_one_over_root_d() -> None:
    q, k, v = packed(B, 16, 3).unbind(2)
    close(ops.pair_attention(q, k, v)[0], ops.pair_attention(q, k, v, scale=0.25)[0])
    close(ops.local_attention(q, k, v), ops.local_attention(q, k, v, scale=0.25))


def test_finite_differences() -> None:
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 3, 1, 4)] * 3)]
    inputs += [normal(2, 2, 1, 4, seed=i).requires_grad_() for i in (3, 4)]
    index = torch.tensor([1, -1, 1])
    assert gradcheck(lambda *x: ops.pair_attention(*x, index)[0], inputs)
    rows = torch.tensor([[2, 2], [0, 1], [1, 0]])
    assert gradcheck(lambda *x: ops.local_attention(*x, rows), inputs[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [None, (2, 0, 3, 1), (-1, 0, -1, 3)])
def test_errors_are_those_of_the_dtype(dtype: torch.dtype, index: tuple[int, ...] | None) -> None:
    leaf, N = packed(B, 129, 3, dtype=dtype), 129
    results = []
    for function, x in (
        (ops.pair_attention, leaf),
        (reference.pair_attention, leaf),
        (reference.pair_attention, leaf.double()),
    ):
        leaves = required(x)
        out, lse = pair(function, leaves, N, partners(index))
        results.append((out, lse.detach(), *gradients(out, leaves)))
    for actual, eager, exact in zip(*results, strict=True):
        no_further_than_twice_eager(actual, eager, exact, dtype)
    assert results[0][0].dtype == dtype
    assert results[0][1].dtype == torch.float32


def test_lse_has_no_gradient() -> None:
    q, k, v = required(*packed(B, 16, 3).unbind(2))
    for index in IN_BATCH:
        out, lse = ops.pair_attention(q, k, v, partner_index=partners(index))
        assert out.requires_grad
        assert not lse.requires_grad


def test_dropout_keeps_the_mean_and_the_lse() -> None:
    """The model drops attention probabilities on this backend; 4000 equal images average the drops away."""
    q, k, v = (x[:1].expand(4000, -1, -1, -1) for x in packed(1, 5, 3).unbind(2))
    index = torch.zeros(4000, dtype=torch.int64)
    torch.manual_seed(0)
    out, lse = torch_backend.pair_attention(Attention(q, k, v, pairs=index, scale=0.25), dropout=0.2)
    expected, expected_lse = reference.pair_attention(
        q[:1], k[:1], v[:1], partner_index=index[:1], scale=0.25
    )
    close(lse, expected_lse.expand(4000, -1, -1))
    torch.testing.assert_close(out.mean(0, keepdim=True), expected, rtol=0, atol=0.05)
    assert (out - expected).abs().max() > 0.1
    assert out.is_contiguous()


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rollout_row(N: int, dtype: torch.dtype) -> None:
    qs, ks, lses = layers(N, dtype)
    double = [x.double() for x in qs], [x.double() for x in ks]
    exact_lses = [reference.attention_scores(q, k).logsumexp(-1) for q, k in zip(*double, strict=True)]
    exact = reference.rollout_row(*double, exact_lses)
    row = ops.rollout_row(qs, ks, lses)
    assert row.dtype == torch.float32
    if dtype == torch.float64:
        torch.testing.assert_close(row.double(), exact, rtol=1e-5, atol=1e-7)
    else:
        eager = reference.rollout_row(qs, ks, [x.to(dtype) for x in exact_lses])
        no_further_than_twice_eager(row, eager, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rollout_from_a_given_row(dtype: torch.dtype) -> None:
    qs, ks, lses = layers(63, torch.float64)
    row = normal(2, 63, seed=5).abs()
    result = ops.rollout_row(qs, ks, lses, row=row.to(dtype))
    assert result.dtype == torch.float32
    expected = reference.rollout_row(qs, ks, lses, row=row)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [10 * 63, 3 * 63 * 63])  # 10 rows of a head, 3 at the end; 3 heads, then 1
def test_rollout_in_many_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qs, ks, lses = layers(63, torch.float32)
    whole = ops.rollout_row(qs, ks, lses)
    monkeypatch.setattr(torch_backend, "CHUNK", chunk)
    torch.testing.assert_close(ops.rollout_row(qs, ks, lses), whole)


def test_rollout_has_no_gradient() -> None:
    qs, ks, lses = layers(16, torch.float32)
    assert not ops.rollout_row(required(*qs), required(*ks), lses).requires_grad


def step(leaf: Tensor, partner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three operations as a model chains them: pairs, the rollout of their lse, the best rows."""
    q, k, v = leaf.unbind(2)
    out, lse = ops.pair_attention(q, k, v, partner_index=partner)
    row = ops.rollout_row([q, q], [k, k], [lse, lse])
    return out, lse, row, ops.local_attention(q, k, v, reference.select_local(row, 1, 0.3))


def test_compiled_without_graph_breaks() -> None:
    leaves, partner = required(packed(2, 17, 3, dtype=torch.float32)), torch.tensor([-1, 0])
    torch.compiler.reset()
    results, expected = torch.compile(step, fullgraph=True)(*leaves, partner), step(*leaves, partner)
    for actual, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, exact)
    outputs, exact = (torch.cat([r[0].flatten(), r[3].flatten()]) for r in (results, expected))
    torch.testing.assert_close(gradients(outputs, leaves), gradients(exact, leaves))


def test_autocast_lowers_attention_alone() -> None:
    """Attention runs in bfloat16, as PyTorch's own does; indices and float64 stay, rollout keeps float32."""
    leaves = required(packed(B, 33, 3, dtype=torch.float32))
    low = [x.detach().bfloat16() for x in leaves]
    index, rows = torch.tensor([1, 0, -1, 2]), torch.zeros(B, 3, dtype=torch.int64)
    inputs = layers(33, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = pair(ops.pair_attention, leaves, 33, index)
        local = ops.local_attention(*leaves[0].unbind(2), rows)
        row = ops.rollout_row(*inputs)
        exact, _ = ops.pair_attention(*packed(B, 33, 3).unbind(2))
        with pytest.raises(ValueError, match=r"q must be float16 .* got torch\.int64"):
            ops.local_attention(*torch.ones(B, 3, 3, H, D, dtype=torch.int64).unbind(2))
    assert (out.dtype, lse.dtype, local.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    torch.testing.assert_close(out, pair(ops.pair_attention, low, 33, index)[0], rtol=0, atol=0)
    torch.testing.assert_close(local, ops.local_attention(*low[0].unbind(2), rows), rtol=0, atol=0)
    torch.testing.assert_close(row, ops.rollout_row(*inputs), rtol=0, atol=0)
    assert exact.dtype == torch.float64
    assert gradients(out, leaves)[0].dtype == torch.float32
