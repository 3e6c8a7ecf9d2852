"""Rules for tensors: what fits gives nothing, what does not gives one sentence each."""

from typing import Any

import pytest
import torch

from dca_triton.tensor_arguments import row_faults, tensor_faults


@pytest.mark.parametrize(
    ("value", "kind", "shape"),
    [
        (torch.zeros(2, 3), "floating-point", ("S", "C")),
        (torch.zeros(2, 3, dtype=torch.float16), "floating-point", (2, "C")),
        (torch.zeros(4, dtype=torch.uint8), "integer", ("S",)),
        (torch.zeros(0, dtype=torch.int64), "integer", (0,)),
    ],
)
def test_what_fits(value: Any, kind: Any, shape: tuple[int | str, ...]) -> None:
    assert tensor_faults("x", value, kind, *shape) == []


@pytest.mark.parametrize(
    ("value", "kind", "shape", "fault"),
    [
        (torch.zeros(2, 0), "floating-point", ("S", "C"), "floating-point (S, C), got float32 (2, 0)"),
        (torch.zeros(2), "floating-point", (3,), "floating-point (3,), got float32 (2,)"),
        (torch.zeros(2, 3), "floating-point", (2,), "floating-point (2,), got float32 (2, 3)"),
        (torch.zeros(2), "integer", (2,), "integer (2,), got float32 (2,)"),
        (torch.zeros(2, dtype=torch.bool), "integer", (2,), "integer (2,), got bool (2,)"),
        (torch.zeros(2, dtype=torch.complex64), "integer", (2,), "integer (2,), got complex64 (2,)"),
        (torch.zeros(2, dtype=torch.int64), "floating-point", (2,), "floating-point (2,), got int64 (2,)"),
        ([1.0, 2.0], "floating-point", (2,), "floating-point (2,), got a list"),
    ],
)
def test_what_does_not(value: Any, kind: Any, shape: tuple[int | str, ...], fault: str) -> None:
    assert tensor_faults("x", value, kind, *shape) == [f"x must be {fault}"]


def test_rows_are_named() -> None:
    bad = torch.tensor([False, True, False])
    assert row_faults("x", "finite", bad, "NaN") == ["x must be finite, got NaN in 1 of 3 rows (1)"]
    assert row_faults("x", "in 0..1", torch.ones(7, dtype=torch.bool)) == [
        "x must be in 0..1, got other values in 7 of 7 rows (0, 1, 2, 3, 4, ...)"
    ]
    assert row_faults("x", "finite", ~bad & bad) == []
