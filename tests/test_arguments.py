"""Rules for arguments: what they accept, and one sentence for what they refuse."""

import re

import pytest
import torch

from dca_triton.arguments import (
    Rule,
    choice,
    flag,
    integer,
    number,
    optional,
    raise_faults,
    size,
    violations,
)

RATE = number(lambda v: 0 <= v < 1, "in [0, 1)")


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (integer(1), [1, 10**400], [0, -1, True, 1.0, "1", None]),
        (RATE, [0, 0.5], [1, -0.1, float("nan"), float("inf"), True, "0", 10**400, None]),
        (number(lambda v: v > 0, "> 0"), [10**300], [10**400, -(10**400)]),
        (choice("a", "b"), ["a"], ["c", None, ["a"]]),
        (flag(), [True, False], [0, 1, None]),
        (size(), [1, (2, 3)], [0, (0, 1), (1, 2, 3), [1, 2], True]),
        (optional(integer(1)), [None, 1], [0]),
    ],
)
def test_what_a_rule_accepts(rule: Rule, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if violations({"x": value}, {"x": rule})] == []
    assert [value for value in bad if not violations({"x": value}, {"x": rule})] == []


@pytest.mark.parametrize(
    ("value", "rule", "sentence"),
    [
        (0, integer(1), "x must be an integer >= 1, got 0"),
        pytest.param(10**5000, RATE, "x must be in [0, 1), got a huge int", id="huge"),
        ("y" * 999, flag(), "x must be True or False, got 'yyy"),
        ("two\nlines", flag(), r"x must be True or False, got 'two\nlines'"),
        (
            torch.ones(2, 3),
            optional(flag()),
            "x must be True or False or None, got a float32 tensor (2, 3) on cpu",
        ),
        (
            torch.eye(2).to_sparse(),
            flag(),
            "x must be True or False, got a tensor of layout torch.sparse_coo",
        ),
    ],
)
def test_the_sentence_of_a_violation(value: object, rule: Rule, sentence: str) -> None:
    (fault,) = violations({"x": value}, {"x": rule})
    assert fault.startswith(sentence)
    assert len(fault) < 300
    assert "\n" not in fault


def test_faults_are_raised_at_once_and_each_once() -> None:
    raise_faults([])
    with pytest.raises(ValueError, match=re.escape("a must be 1, got 2; b must be 3, got 4") + "$"):
        raise_faults(iter(["a must be 1, got 2", "b must be 3, got 4", "a must be 1, got 2"]))
