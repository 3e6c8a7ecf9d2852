"""The eager reference itself, against explicit loops in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dca_triton import reference

FUSIONS = {"mean": np.mean, "max": np.max, "min": np.min}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """One query (D,) over keys and values (N, D), and the log-sum-exp of its scores."""
    weights = np.exp(k @ q * scale)
    return weights @ v / weights.sum(), np.log(weights.sum())


def rolled_out(
    attentions: list[Tensor], head_fusion: str, discard_ratio: float, add_residual: bool
) -> np.ndarray:
    B, _, N, _ = attentions[0].shape
    results = []
    for image in range(B):
        result = np.eye(N)
        for attention in attentions:
            fused = FUSIONS[head_fusion](attention[image].numpy(), axis=0)
            for position in np.argsort(fused, axis=None)[: int(N * N * discard_ratio)]:
                row, column = divmod(int(position), N)
                if column != 0:
                    fused[row, column] = 0
            if add_residual:
                fused = (fused + np.eye(N)) / 2
            result = (fused / fused.sum(1, keepdims=True)) @ result
        results.append(result)
    return np.stack(results)


@pytest.mark.parametrize("index", [None, (2, 0, 1), (1, -1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_pair_attention(index: tuple[int, ...] | None, elsewhere: bool) -> None:
    q, k, v = normal(3, 4, 2, 5), normal(3, 6, 2, 5, seed=1), normal(3, 6, 2, 5, seed=2)
    pk, pv = (normal(3, 3, 2, 5, seed=3), normal(3, 3, 2, 5, seed=4)) if elsewhere else (k, v)
    partner = None if index is None else torch.tensor(index)
    others = (pk, pv) if elsewhere and index is not None else (None, None)
    out, lse = reference.pair_attention(q, k, v, *others, partner)
    for b, m, h in np.ndindex(3, 4, 2):
        keys, values = k[b, :, h], v[b, :, h]
        if index is not None and index[b] >= 0:
            keys, values = (
                torch.cat([keys, pk[index[b], :, h]]),
                torch.cat([values, pv[index[b], :, h]]),
            )
        expected, log_sum = attended(q[b, m, h].numpy(), keys.numpy(), values.numpy(), 5**-0.5)
        np.testing.assert_allclose(out[b, m, h], expected)
        np.testing.assert_allclose(lse[b, h, m], log_sum)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_local_attention(dtype: torch.dtype) -> None:
    q, k, v = normal(2, 6, 2, 5), normal(2, 6, 2, 5, seed=1), normal(2, 6, 2, 5, seed=2)
    index = torch.tensor([[0, 4, 4], [5, 0, 1]], dtype=dtype)
    out = reference.local_attention(q, k, v, index, scale=0.7)
    for b, r, h in np.ndindex(2, 3, 2):
        expected, _ = attended(q[b, index[b, r], h].numpy(), k[b, :, h].numpy(), v[b, :, h].numpy(), 0.7)
        np.testing.assert_allclose(out[b, r, h], expected)


@pytest.mark.parametrize("head_fusion", FUSIONS)
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("add_residual", [False, True])
def test_rollout(head_fusion: str, discard_ratio: float, add_residual: bool) -> None:
    attentions = [normal(2, 3, 7, 7, seed=layer).softmax(-1) for layer in range(3)]
    result = reference.rollout(attentions, head_fusion, discard_ratio, add_residual)
    np.testing.assert_allclose(result, rolled_out(attentions, head_fusion, discard_ratio, add_residual))


@pytest.mark.parametrize("N", [1, 16, 63])
def test_rollout_row_is_the_first_row_of_the_product(N: int) -> None:
    qs, ks = ([normal(2, N, 3, 8, seed=10 * i + layer) for layer in range(4)] for i in range(2))
    lses = [reference.attention_scores(q, k).logsumexp(-1) for q, k in zip(qs, ks, strict=True)]
    product = reference.rollout([reference.attention_weights(q, k) for q, k in zip(qs, ks, strict=True)])
    torch.testing.assert_close(reference.rollout_row(qs, ks, lses), product[:, 0])
    row = normal(2, N, seed=99)
    expected = torch.einsum("bm,bmn->bn", row, product)
    torch.testing.assert_close(reference.rollout_row(qs, ks, lses, row=row), expected)


@pytest.mark.parametrize(
    ("patches", "ratio", "count"), [(196, 0.1, 19), (128, 0.3, 38), (5, 0.1, 1), (4, 1.0, 4)]
)
def test_number_of_local_tokens(patches: int, ratio: float, count: int) -> None:
    assert reference.num_local(patches, ratio) == count


def test_selected_are_the_class_token_and_the_best_patches() -> None:
    row = torch.tensor([[0.9, 0.8, 0.1, 0.4, 0.2, 0.3], [0.0, 0.0, 0.5, 0.1, 0.7, 0.6]])
    assert reference.select_local(row, 2, 0.5).tolist() == [[0, 3, 5], [0, 4, 5]]  # token 1 is a prefix
    assert reference.select_local(row, 1, 0.1).tolist() == [[0, 1], [0, 4]]
    assert reference.select_local(row, 1, 0.5).dtype == torch.int64


@pytest.mark.parametrize(
    ("attentions", "options", "sentence"),
    [
        ([], {}, "attentions must hold the maps of at least one layer, got none"),
        ([torch.ones(1, 1, 2, 2)], {"head_fusion": "median"}, "head_fusion must be .* got 'median'"),
        ([torch.ones(1, 1, 2, 2)], {"discard_ratio": 1.0}, r"discard_ratio must be in \[0, 1\), got 1.0"),
    ],
)
def test_rollout_refuses(attentions: list[Tensor], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        reference.rollout(attentions, **options)
