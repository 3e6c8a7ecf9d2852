"""A bias of the scores, in `pair_attention` and `rollout_row`, against the reference in float64."""

from types import SimpleNamespace

import pytest
import torch
from ops_cases import B, D, H, normal, packed
from torch import Tensor

from dca_triton import ops, reference
from dca_triton.ops import Attention, fused, torch_backend, triton_backend

M, N = 5, 7
SHAPES = {"of all images": (1, H, M, N), "of each image": (B, H, M, N), "of keys": (1, 1, 1, N)}
PARTNERS = [None, [-1, -1, -1, -1], [-1, 3, -1, 3], [1, 0, 3, 2]]


@pytest.fixture(params=["eager", "as compiled"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the index cannot be read, pairs are formed in another way."""
    if request.param == "as compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """Queries, keys, values, partner's keys and values, and a bias that hides a key of some queries."""
    parts = [normal(B, M, H, D), *packed(B, N, 2, seed=1).unbind(2), *packed(B, N, 2, seed=2).unbind(2)]
    bias = 3 * normal(*shape, seed=3)
    bias[..., 2] = float("-inf")
    return [part.detach().requires_grad_() for part in (*parts, bias)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("partner", PARTNERS, ids=str)
def test_it_is_added_to_own_and_partners_scores(
    path: str, shape: tuple[int, ...], partner: list[int] | None
) -> None:
    index = None if partner is None else torch.tensor(partner)
    q, k, v, partner_k, partner_v, bias = leaves = inputs(shape)
    for others in [(partner_k, partner_v), (None, None)] if partner else [(None, None)]:
        found = ops.pair_attention(q, k, v, *others, index, bias=bias)
        expected = reference.pair_attention(q, k, v, *others, index, bias=bias)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        gradients, truth = (
            torch.autograd.grad(out.sin().sum(), leaves, materialize_grads=True)
            for out, _ in (found, expected)
        )
        kept = bias.isfinite()  # a hidden key has no gradient worth a name
        assert (gradients[-1] * kept).abs().max() > 1e-3
        for ours, right in zip(gradients, truth, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)
        with torch.no_grad():  # the fused kernel, which gives a bias no gradient
            torch.testing.assert_close(
                ops.pair_attention(q, k, v, *others, index, bias=bias), found, rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("partner", PARTNERS, ids=str)
def test_the_log_sum_exp_in_many_chunks(
    shape: tuple[int, ...], partner: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two query rows, and one at the end."""
    monkeypatch.setattr(fused, "row_chunks", lambda *_: [slice(0, 2), slice(2, 4), slice(4, 5)])
    index = None if partner is None else torch.tensor(partner)
    *tensors, bias = inputs(shape)
    found = ops.pair_attention(*(tensors if partner else tensors[:3]), partner_index=index, bias=bias)
    expected = reference.pair_attention(
        *(tensors if partner else tensors[:3]), partner_index=index, bias=bias
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_dropout_drops_probabilities_with_a_bias(path: str) -> None:
    """Values are unit vectors, so that each output is a probability, scaled or dropped."""
    torch.manual_seed(0)
    units = torch.eye(2 * N, dtype=torch.float64)
    q, k, other = normal(B, M, H, 2 * N), normal(B, N, H, 2 * N, seed=1), normal(B, N, H, 2 * N, seed=2)
    v, other_v = (part[None, :, None].expand(B, -1, H, -1) for part in (units[:N], units[N:]))
    bias, index = normal(1, H, M, N, seed=3), torch.tensor([-1, 2, 0, -1])
    out, _ = torch_backend.pair_attention(Attention(q, k, v, other, other_v, index, bias=bias), 0.5)
    kept, _ = reference.pair_attention(q, k, v, other, other_v, index, bias=bias)
    dropped = out == 0
    assert 0.3 < dropped[1:3].double().mean() < 0.7
    torch.testing.assert_close(out, torch.where(dropped, 0, 2 * kept))


@pytest.mark.parametrize("start", ["class token", "class token's row", "row"])
def test_rollout_counts_it(path: str, start: str) -> None:
    layers = [packed(B, N, 3, seed=i).unbind(2) for i in range(3)]
    qs, ks = [q for q, _, _ in layers], [k for _, k, _ in layers]
    biases = [2 * normal(1, H, N, N, seed=5), 2 * normal(B, H, N, N, seed=6), 2 * normal(1, H, N, N, seed=7)]
    maps = [reference.attention_weights(q, k, bias=b) for q, k, b in zip(qs, ks, biases, strict=True)]
    row = normal(B, N, seed=8).abs() if start == "row" else None
    product = reference.rollout(maps)
    expected = product[:, 0] if row is None else torch.einsum("bm,bmn->bn", row, product)
    if start == "class token's row":
        qs[-1], biases[-1] = qs[-1][:, :1], biases[-1][:, :, :1]
    lses = [
        reference.attention_scores(q, k, bias=b).logsumexp(-1) for q, k, b in zip(qs, ks, biases, strict=True)
    ]
    torch.testing.assert_close(reference.rollout_row(qs, ks, lses, None, row, biases), expected)
    found = ops.rollout_row(qs, ks, lses, None, row, biases=biases)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    without = ops.rollout_row(qs, ks, lses, None, row)
    assert not torch.allclose(without.double(), expected, atol=1e-3)


def test_every_fault_is_named() -> None:
    q, k, v, partner_k, partner_v, bias = inputs(SHAPES["of all images"])
    index = torch.zeros(B, dtype=torch.long)
    for wrong, sentence in [
        (bias[0], r"bias must have shape \(B, H, M, N\), got \(2, 5, 7\)"),
        (bias.float(), "bias must have the dtype of q, torch.float64, got torch.float32"),
        (bias[..., :3], r"bias must broadcast to \(B, H, M, N\) = \(4, 2, 5, 7\), got shape \(1, 2, 5, 3\)"),
        ("none", "bias must be a dense tensor or None, got str"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            ops.pair_attention(q, k, v, bias=wrong)
    with pytest.raises(ValueError, match="partner_k must have k's N = 7 where bias is given, got 3"):
        ops.pair_attention(q, k, v, partner_k[:, :3], partner_v[:, :3], index, bias=bias)
    lse = torch.zeros(B, H, N, dtype=torch.float64)
    with pytest.raises(ValueError, match="biases must hold one tensor for each of 1 layers, got 2"):
        ops.rollout_row([k], [k], [lse], biases=[bias, bias])
    with pytest.raises(ValueError, match=r"biases\[0\] must broadcast to \(B, H, N, N\)"):
        ops.rollout_row([k], [k], [lse], biases=[bias])


def test_triton_refuses_it_and_auto_takes_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, _, _, bias = inputs(SHAPES["of all images"])
    lse = torch.zeros(B, H, N, dtype=torch.float64)
    for call in (
        lambda: ops.pair_attention(q, k, v, bias=bias, backend="triton"),
        lambda: ops.rollout_row([k], [k], [lse], biases=[k.new_zeros(1, 1, 1, 1)], backend="triton"),
    ):
        with pytest.raises(RuntimeError, match="a bias of the scores runs on PyTorch only"):
            call()
    monkeypatch.setattr(ops, "reasons_against_triton", lambda *tensors: [])
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert ops._choose("auto", [], on_gpu, biased=True) is torch_backend
    assert ops._choose("auto", [], on_gpu) is triton_backend
