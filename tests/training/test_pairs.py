"""Partners within a batch, against a slow loop and counted draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dca_triton.training import PairSampler
from dca_triton.training.pairs import Strategy

STRATEGIES: tuple[Strategy, ...] = ("random", "hard_negative", "mixed")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    labels=st.lists(st.integers(-2, 3), min_size=2, max_size=12),
    seed=st.integers(0, 2**20),
    strategy=st.sampled_from(STRATEGIES),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@settings(deadline=None)
def test_partners_against_a_loop(
    labels: list[int], seed: int, strategy: Strategy, dtype: torch.dtype
) -> None:
    B = len(labels)
    features = torch.randn(B, 5, generator=seeded(seed)).to(dtype)
    partner = PairSampler(strategy)(torch.tensor(labels), features, seeded(seed))
    assert partner.shape == (B,) and partner.dtype == torch.int64
    similarity = F.cosine_similarity(features[:, None].double(), features[None].double(), dim=-1)
    for i, j in enumerate(partner.tolist()):
        assert 0 <= j < B and j != i
        others = [m for m in range(B) if labels[m] != labels[i]]
        if strategy == "hard_negative" and others:
            assert labels[j] != labels[i]
            assert similarity[i, j] >= max(similarity[i, m] for m in others) - 1e-5
    again = PairSampler(strategy)(torch.tensor(labels), features, seeded(seed))
    assert torch.equal(partner, again)


def test_hard_negative_by_hand() -> None:
    # The long vector has the larger product but the wider angle; row 1, the nearest to row 0, has its label.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.2], [50.0, 50.0]])
    partner = PairSampler("hard_negative")(torch.tensor([7, 7, 8, 9]), features)
    assert partner.tolist() == [2, 2, 1, 2]


def draws(sampler: PairSampler, labels: Tensor, features: Tensor | None, times: int = 4000) -> Tensor:
    draw = seeded(0)
    partners = torch.stack([sampler(labels, features, draw) for _ in range(times)])  # [times, B]
    return F.one_hot(partners, len(labels)).double().mean(0)  # [B, B] frequencies


@pytest.mark.parametrize("strategy", ["random", "hard_negative"])
def test_random_is_uniform_over_the_others(strategy: Strategy) -> None:
    labels = torch.zeros(4, dtype=torch.int64)  # one label: hard_negative falls back to any other image
    seen = draws(PairSampler(strategy), labels, torch.randn(4, 3, generator=seeded(1)))
    torch.testing.assert_close(seen, (1 - torch.eye(4).double()) / 3, atol=0.04, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_mixed_takes_the_hard_one_with_its_ratio(ratio: float) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    features = torch.randn(4, 3, generator=seeded(2))
    hard = F.one_hot(PairSampler("hard_negative")(labels, features), 4).double()
    expected = ratio * hard + (1 - ratio) * (1 - torch.eye(4).double()) / 3
    torch.testing.assert_close(
        draws(PairSampler("mixed", ratio), labels, features), expected, atol=0.04, rtol=0
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_image_alone_has_no_partner(strategy: Strategy) -> None:
    partner = PairSampler(strategy)(torch.tensor([3]), torch.ones(1, 2))
    assert partner.tolist() == [-1] and partner.dtype == torch.int64


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_waits_for_the_device(strategy: Strategy) -> None:
    """A fake tensor has no values: reading one on the host would raise."""
    with FakeTensorMode():
        labels = torch.zeros(5, dtype=torch.int64, device="cuda")
        partner = PairSampler(strategy)(labels, torch.ones(5, 2, device="cuda"))
    assert partner.shape == (5,) and partner.device.type == "cuda"


def test_large_half_precision_features_and_autocast() -> None:
    # In float16 the norms overflow to infinity and every similarity is 0; in bfloat16 0.9999 ties with 1.
    features = torch.tensor([[6e4, 6e4], [-6e4, 6e4], [6e4, 5.9e4]], dtype=torch.float16)
    assert PairSampler("hard_negative")(torch.arange(3), features).tolist() == [2, 0, 0]
    near = torch.tensor([[1.0, 0.0], [1.0, 0.02], [1.0, 0.01]])
    with torch.autocast("cpu", torch.bfloat16):
        assert PairSampler("hard_negative")(torch.arange(3), near).tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("labels", "features", "sentence"),
    [
        (torch.arange(3), None, "features must be given for strategy 'mixed', got None"),
        (
            torch.arange(3),
            torch.ones(2, 4),
            r"features must be .* with B = 3, sizes >= 1, got a float32 tensor \(2, 4\)",
        ),
        (torch.arange(3), torch.ones(3), r"features must be .* \(B, C\) .* got a float32 tensor \(3,\)"),
        (
            torch.arange(3),
            torch.ones(3, 4, dtype=torch.int64),
            r"features must be .* floating-point tensor \(B, C\) with .* got an int64 tensor",
        ),
        (
            torch.arange(3),
            torch.ones(3, 4, device="meta"),
            "features must be on the device of labels, cpu, got meta",
        ),
        (
            torch.ones(3),
            torch.ones(3, 4),
            r"labels must be a dense integer tensor \(B,\) .* got a float32 tensor \(3,\)",
        ),
        (
            torch.ones(0, dtype=torch.int64),
            None,
            r"labels must be .* sizes >= 1, got an int64 tensor \(0,\) .*; features must be .* got None",
        ),
    ],
)
def test_wrong_arguments(labels: Tensor, features: Tensor | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PairSampler("mixed")(labels, features)


def test_arguments_that_are_not_tensors() -> None:
    with pytest.raises(
        ValueError,
        match=r"labels must be .* got \[0, 1\]; features must be .* got \(\(1.0,\), \(2.0,\)\)",
    ):
        PairSampler()([0, 1], ((1.0,), (2.0,)))  # type: ignore[arg-type]


def test_generator_of_another_device() -> None:
    with pytest.raises(ValueError, match="generator must be on the device of labels, meta, got cpu"):
        PairSampler()(torch.zeros(2, dtype=torch.int64, device="meta"), generator=seeded(0))


def test_settings_are_refused_together() -> None:
    with pytest.raises(
        ValueError, match=r"strategy must be .* got 'easy'; hard_ratio must be in \[0, 1\], got 1.5"
    ):
        PairSampler("easy", 1.5)  # type: ignore[arg-type]
