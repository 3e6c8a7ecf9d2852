"""Rules for tensors: what they accept, and one sentence for each tensor that they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dca_triton.tensor_arguments import row_violations, tensor_violations


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (
            "floating-point (B, K)",
            [torch.ones(2, 3), torch.ones(1, 1).half()],
            [torch.ones(2), torch.ones(0, 3)],
        ),
        (
            "floating-point (B, 3, n, n)",
            [torch.ones(2, 3, 4, 4)],
            [torch.ones(2, 3, 4, 5), torch.ones(2, 1, 4, 4)],
        ),
        (
            "floating-point (two,)",
            [torch.ones(2)],
            [torch.ones(3), torch.ones(2, dtype=torch.int64), [1.0, 2.0]],
        ),
        ("floating-point ()", [torch.tensor(1.0)], [torch.ones(1), 1.0]),
        ("integer (B,)", [torch.ones(2).byte(), torch.arange(3)], [torch.ones(2), torch.ones(2).bool()]),
        ("integer (B,)", [], [torch.ones(2, dtype=torch.complex64), torch.arange(0), None]),
        ("integer (none,)", [torch.arange(0)], [torch.arange(1)]),
        ("int64 or int32 (B,)", [torch.arange(2), torch.arange(2).int()], [torch.arange(2).short()]),
        ("floating-point (B, K)", [], [torch.eye(2).to_sparse(), torch.eye(2).to_mkldnn(), [[1.0]], None]),
    ],
)
def test_what_a_rule_accepts(rule: str, good: list[object], bad: list[object]) -> None:
    sizes = {"two": 2, "none": 0}
    assert [value for value in good if tensor_violations({"x": value}, {"x": rule}, sizes)] == []
    assert [value for value in bad if not tensor_violations({"x": value}, {"x": rule}, sizes)] == []


@pytest.mark.parametrize(
    ("value", "rule", "sentence"),
    [
        (
            torch.zeros(2, 0),
            "floating-point (S, C)",
            "a dense floating-point tensor (S, C) with sizes >= 1, got a float32 tensor (2, 0) on cpu",
        ),
        (
            torch.zeros(2),
            "int64 or int32 (N, K, N)",
            "a dense int64 or int32 tensor (N, K, N) with N = 3, sizes >= 1, "
            "got a float32 tensor (2,) on cpu",
        ),
        (
            torch.zeros(2),
            "integer (N,)",
            "a dense integer tensor (N,) with N = 3, got a float32 tensor (2,) on cpu",
        ),
        (
            torch.zeros(2),
            "floating-point (3,)",
            "a dense floating-point tensor (3,), got a float32 tensor (2,) on cpu",
        ),
        (
            torch.zeros(2),
            "floating-point ()",
            "a dense floating-point tensor (), got a float32 tensor (2,) on cpu",
        ),
        ([1.0], "floating-point (3,)", "a dense floating-point tensor (3,), got [1.0]"),
        (
            torch.eye(2).to_sparse(),
            "floating-point (3, 3)",
            "a dense floating-point tensor (3, 3), got a tensor of layout torch.sparse_coo",
        ),
    ],
)
def test_the_sentence_of_a_violation(value: Any, rule: str, sentence: str) -> None:
    assert tensor_violations({"x": value}, {"x": rule}, {"N": 3}) == [f"x must be {sentence}"]


def test_equal_names_are_equal_sizes_in_the_whole_table() -> None:
    rules = {"labels": "integer (B,)", "logits": "floating-point (B, K)"}
    labels = torch.arange(2)
    assert tensor_violations({"labels": labels, "logits": torch.zeros(2, 5), "more": None}, rules) == []
    assert tensor_violations({"labels": labels, "logits": torch.zeros(3, 5)}, rules) == [
        "logits must be a dense floating-point tensor (B, K) with B = 2, sizes >= 1, "
        "got a float32 tensor (3, 5) on cpu"
    ]
    # A tensor that breaks its own rule fixes no size for the others.
    assert len(tensor_violations({"labels": labels.float(), "logits": torch.zeros(3, 5)}, rules)) == 1


def test_tensors_on_one_device() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2, device="meta")}
    rules = dict.fromkeys(tensors, "floating-point (N,)")
    assert tensor_violations(tensors, rules) == []
    assert tensor_violations(tensors, rules, same_device=True) == [
        "b must be on the device of a, cpu, got meta"
    ]


def test_a_compiled_graph_keeps_its_sizes_dynamic() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        rules = {"x": "floating-point (B, C)", "y": "float32 or float64 (B, C)"}
        assert not tensor_violations({"x": x, "y": x}, rules, same_device=True)
        return 2 * x

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(double, backend=backend, fullgraph=True, dynamic=True)
    for B in (2, 3, 5):
        x = torch.ones(B, 4)
        assert torch.equal(compiled(x), 2 * x)
    assert len(graphs) == 1


def test_rows_are_named() -> None:
    bad = torch.tensor([False, True, False])
    assert row_violations("x", "finite", bad, "NaN") == ["x must be finite, got NaN in 1 of 3 rows (1)"]
    assert row_violations("x", "in 0..1", torch.ones(7, dtype=torch.bool)) == [
        "x must be in 0..1, got other values in 7 of 7 rows (0, 1, 2, 3, 4, ...)"
    ]
    assert row_violations("x", "finite", ~bad & bad) == []
