"""Means, deviations and paired differences against numbers worked out by hand and by NumPy and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from dca_triton.evaluation.paired import Estimate, estimate, paired_differences


def test_by_hand() -> None:
    """Differences 0.1, 0.2 and 0.3: mean 0.2, deviation 0.1, error 0.1 / sqrt 3."""
    found = paired_differences(
        {"a": {0: 0.5, 1: 0.9, 2: 0.1}, "b": {0: 0.6, 1: 1.1, 2: 0.4}, "c": {0: 0.5, 1: 0.9, 2: 0.1}}
    )
    assert list(found) == ["b", "c"]
    assert found["b"].mean == pytest.approx(0.2)
    assert found["b"].deviation == pytest.approx(0.1)
    assert found["b"].error == pytest.approx(0.1 / math.sqrt(3))
    assert (found["c"].mean, found["c"].error, found["c"].count) == (0, 0, 3)


def test_against_numpy_and_a_paired_t_test() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    own = estimate(dict(enumerate(a)))
    assert (own.mean, own.deviation) == (pytest.approx(a.mean()), pytest.approx(a.std(ddof=1)))
    found = paired_differences({"a": dict(enumerate(a)), "b": dict(enumerate(b))})["b"]
    assert found.error == pytest.approx(stats.sem(b - a))
    assert found.mean / found.error == pytest.approx(stats.ttest_rel(b, a).statistic)
    independent = math.hypot(stats.sem(a), stats.sem(b))
    assert found.error != pytest.approx(independent)  # pairing counts


def test_one_seed_has_no_error() -> None:
    assert estimate({4: 0.5}) == Estimate(0.5, None, 1)
    assert estimate({4: 0.5}).error is None
    assert paired_differences({"a": {0: 0.25}, "b": {0: 0.75}}) == {"b": Estimate(0.5, None, 1)}


def test_only_common_seeds_count() -> None:
    found = paired_differences({"a": {0: 0.1, 2: 0.3}, "b": {2: 0.4, 0: 0.3, 1: 9.0}, "c": {1: 1.0}, "d": {}})
    assert (found["b"].count, found["b"].mean) == (2, pytest.approx(0.15))
    assert found["c"] is None and found["d"] is None and estimate({}) is None


def test_no_variant() -> None:
    with pytest.raises(ValueError, match="variants must hold at least one variant, got none"):
        paired_differences({})
