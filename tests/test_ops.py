"""The public operations on the torch backend, against `dca_triton.reference` in float64."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from dca_triton import ops, reference
from dca_triton.ops import torch_backend

H, D = 2, 16
B = 4
LENGTHS = [1, 16, 63, 129, 197]
IN_BATCH = [None, (-1, -1, -1, -1), (2, 0, 3, 1), (1, 1, 1, 1), (-1, 0, -1, 3), (0, -1, 2, -1)]
ELSEWHERE = [(-1, -1, -1, -1), (5, 0, 3, 1), (4, 4, 4, 4), (-1, 5, -1, 5), (3, 0, -1, -1)]
INTEGERS = [torch.int32, torch.int64]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(rows: int, N: int, parts: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A projection (rows, N, parts, H, D), whose parts are strided views."""
    return normal(rows, N, parts, H, D, seed=seed, dtype=dtype)


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


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def no_further_than_twice_eager(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    allowed = 2 * max(rms(eager - exact), torch.finfo(actual.dtype).eps * rms(exact))
    assert rms(actual - exact) <= allowed  # NaN fails too


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
    for actual, wanted in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        close(actual, wanted)


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
        no_further_than_twice_eager(actual.double(), eager.double(), exact)
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
    out, lse = torch_backend.pair_attention(q, k, v, None, None, index, 0.25, dropout=0.2)
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
        assert rms(row - exact) <= 2 * max(rms(eager - exact), torch.finfo(dtype).eps * rms(exact))


def layers(N: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    leaves = [packed(2, N, 3, seed=i, dtype=dtype) for i in range(3)]
    qs, ks = [x[:, :, 0] for x in leaves], [x[:, :, 1] for x in leaves]
    return qs, ks, [ops.pair_attention(*x.unbind(2))[1] for x in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rollout_from_a_given_row(dtype: torch.dtype) -> None:
    qs, ks, lses = layers(63, torch.float64)
    row = normal(2, 63, seed=5).abs()
    result = ops.rollout_row(qs, ks, lses, row=row.to(dtype))
    assert result.dtype == torch.float32
    expected = reference.rollout_row(qs, ks, lses, row=row)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_rollout_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    qs, ks, lses = layers(63, torch.float32)
    whole = ops.rollout_row(qs, ks, lses)
    monkeypatch.setattr(torch_backend, "CHUNK", 5 * H * 63)  # 5 rows at a time, and 3 at the end
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
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    outputs, wanted = (torch.cat([r[0].flatten(), r[3].flatten()]) for r in (results, expected))
    torch.testing.assert_close(gradients(outputs, leaves), gradients(wanted, leaves))


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
        with pytest.raises(ValueError, match=r"q is torch\.int64"):
            ops.local_attention(*torch.ones(B, 3, 3, H, D, dtype=torch.int64).unbind(2))
    assert (out.dtype, lse.dtype, local.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    torch.testing.assert_close(out, pair(ops.pair_attention, low, 33, index)[0], rtol=0, atol=0)
    torch.testing.assert_close(local, ops.local_attention(*low[0].unbind(2), rows), rtol=0, atol=0)
    torch.testing.assert_close(row, ops.rollout_row(*inputs), rtol=0, atol=0)
    assert exact.dtype == torch.float64
    assert gradients(out, leaves)[0].dtype == torch.float32


def faulty(**changes: object) -> dict[str, object]:
    """Arguments of `pair_attention` that are right but for `changes`."""
    q, k, v = packed(B, 5, 3).unbind(2)
    pk, pv = packed(3, 7, 2).unbind(2)
    right = dict(q=q, k=k, v=v, partner_k=pk, partner_v=pv, partner_index=torch.tensor([0, 2, -1, 1]))
    return right | changes


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"q": normal(2, 3)}, [r"q has shape \(2, 3\); allowed are 4 dimensions"]),
        ({"q": torch.tensor(1.0)}, [r"q has shape \(\); allowed are 4 dimensions"]),
        ({"q": normal(B, 0, H, D)}, [r"q has shape \(4, 0, 2, 16\); allowed are sizes of at least 1"]),
        ({"k": normal(B, 6, H, 8)}, [r"k is \(4, 6, 2, 8\); .* = 4, 2, 16 as in q", r"v is \(4, 5, 2, 16\)"]),
        (
            {"v": normal(B, 5, H, D, dtype=torch.float32)},
            ["v is torch.float32; .* dtype of q, torch.float64"],
        ),
        ({"k": torch.empty(B, 5, H, D, device="meta")}, ["k is on meta; allowed is the device of q, cpu"]),
        ({"partner_v": None}, ["partner_k and partner_v must be given together"]),
        ({"partner_index": None}, ["partner_k is given without partner_index"]),
        ({"partner_v": normal(3, 6, H, D)}, [r"partner_v is \(3, 6, 2, 16\); .* \(3, 7, 2, 16\)"]),
        (
            {"partner_k": normal(3, 7, 1, D)},
            [r"partner_k is \(3, 7, 1, 16\); H and D must be q's, \(2, 16\)"],
        ),
        ({"partner_index": torch.zeros(B)}, ["partner_index is torch.float32; allowed are int32, int64"]),
        ({"partner_index": torch.zeros(2, dtype=torch.int64)}, [r"\(2,\); allowed is \(B,\) = \(4,\)"]),
        ({"partner_index": torch.zeros(B, 1, dtype=torch.int64)}, ["allowed are 1 dimensions"]),
        ({"partner_index": torch.tensor([0, 3, 0, 0])}, ["holds values from 0 to 3; allowed are -1 to 2"]),
        ({"partner_index": torch.tensor([-2, 0, 0, 0])}, ["holds values from -2 to 0; allowed are -1 to 2"]),
        ({"scale": float("nan")}, ["scale is nan; allowed is a finite number of at least 0"]),
        ({"scale": -1.0}, ["scale is -1.0"]),
        (
            {"v": normal(3, 5), "partner_v": None, "partner_index": torch.zeros(2), "scale": float("inf")},
            [
                "v has shape",
                "partner_v must be given",
                "is torch.float32",
                r"\(B,\) = \(4,\)",
                "scale is inf",
            ],
        ),
    ],
)
def test_pair_attention_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    sentence(lambda: ops.pair_attention(**faulty(**changes)), reasons)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"index": torch.tensor([[5]] * B)}, ["index holds values from 5 to 5; allowed are 0 to 4"]),
        ({"index": torch.tensor([[-1]] * B)}, ["index holds values from -1 to -1; allowed are 0 to 4"]),
        ({"index": torch.zeros(B, 0, dtype=torch.int64)}, [r"index has shape \(4, 0\); .* at least 1"]),
        ({"index": torch.zeros(2, 3)}, ["index is torch.float32", r"\(2, 3\); .* \(B,\) = \(4,\)"]),
        ({"q": torch.tensor(1.0)}, [r"q has shape \(\); allowed are 4 dimensions"]),
        ({"k": normal(2, 5, H, D), "scale": "big"}, [r"k is \(2, 5, 2, 16\)", "v is", "scale is 'big'"]),
    ],
)
def test_local_attention_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    q, k, v = packed(B, 5, 3).unbind(2)
    right = dict(q=q, k=k, v=v, index=torch.zeros(B, 2, dtype=torch.int64))
    sentence(lambda: ops.local_attention(**(right | changes)), reasons)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"qs": []}, ["qs, ks and lses hold 0, 3 and 3 layers; allowed is the same number, at least 1"]),
        ({"row": normal(2, 8)}, [r"row is \(2, 8\) .* \(B, N\) = \(2, 9\)"]),
        ({"row": torch.ones(2, 9, dtype=torch.int64)}, ["torch.int64; allowed is"]),
        (
            {"ks": [normal(2, 9, H, D), normal(2, 8, H, D), normal(2, 9, H, D)]},
            [r"ks\[1\] is \(2, 8, 2, 16\)"],
        ),
        (
            {"lses": [normal(2, 9, H)] + [normal(2, H, 9)] * 2, "row": normal(9), "scale": -2},
            [r"lses\[0\] is \(2, 9, 2\); allowed is \(B, H, N\) = \(2, 2, 9\)", "row is", "scale is -2"],
        ),
        ({"lses": [normal(2, H, 9, dtype=torch.float16)] * 3}, [r"lses\[2\] is torch.float16"]),
    ],
)
def test_rollout_row_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    qs, ks, lses = layers(9, torch.float64)
    sentence(lambda: ops.rollout_row(**(dict(qs=qs, ks=ks, lses=lses) | changes)), reasons)


def sentence(call: Callable[[], object], reasons: list[str]) -> None:
    """One line holds every reason."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert [reason for reason in reasons if re.search(reason, text) is None] == [], text


def test_a_backend_that_cannot_run_says_why() -> None:
    pytest.importorskip("triton")
    q, k, v = normal(1, 3, 1, 40).expand(3, 3, 1, 40).unbind(0)
    q, k, v = (x[None] for x in (q, k, v))
    lse = torch.zeros(1, 1, 3)
    for call in (
        lambda: ops.pair_attention(q, k, v, backend="triton"),
        lambda: ops.local_attention(q, k, v, backend="triton"),
        lambda: ops.rollout_row([q], [k], [lse], backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"on the CPU.*float64.*40"):
            call()


def test_an_unknown_backend() -> None:
    q, k, v = packed(1, 3, 3).unbind(2)
    with pytest.raises(ValueError, match="backend is 'nonsense'; allowed are 'auto', 'triton' and 'torch'"):
        ops.pair_attention(q, k, v, backend="nonsense")  # type: ignore[arg-type]


WITHOUT_TRITON = """
import sys

import torch  # first: its own probes for triton expect find_spec to answer None

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ImportError("no triton here")

sys.meta_path.insert(0, Absent())
from dca_triton import ops, reference

qkv = torch.randn(2, 9, 3, 1, 16, requires_grad=True)
q, k, v = qkv.unbind(2)
out, lse = ops.pair_attention(q, k, v, partner_index=torch.tensor([1, -1]))
expected, _ = reference.pair_attention(q, k, v, partner_index=torch.tensor([1, -1]))
torch.testing.assert_close(out, expected)
out.sum().backward()
ops.rollout_row([q], [k], [lse])
try:
    ops.local_attention(q, k, v, backend="triton")
except RuntimeError as error:
    assert "no triton here" in str(error), error
else:
    raise AssertionError("nothing was raised")
assert "triton" not in sys.modules
print("served")
"""


def test_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "served", done.stderr
