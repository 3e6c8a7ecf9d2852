"""Checks of values. On a CPU they are read; on a GPU an assertion is queued, which costs no host sync."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import raise_faults
from ..tensor_arguments import row_violations

INTEGERS = (torch.int32, torch.int64)
START_ROW = "row must hold finite values >= 0"


class Range(NamedTuple):
    """A rule for values: they must be in [low, high)."""

    name: str
    values: Tensor
    low: int
    high: int

    def faults(self) -> list[str]:
        """The fault of values that can be read; an index of another dtype has other faults."""
        if not _readable(self.values) or self.values.dtype not in INTEGERS or self.values.numel() == 0:
            return []
        smallest, largest = (int(x) for x in self.values.aminmax())
        if self.low <= smallest and largest < self.high:
            return []
        rule = f"in [{self.low}, {self.high})"
        return [f"{self.name} must hold values {rule}, got values from {smallest} to {largest}"]

    def assert_values(self) -> None:
        """Queue an assertion about values that cannot be read here."""
        if _has_unread_values(self.values):
            # `high` in the message would pin the batch size of a compiled graph.
            holds = ((self.values >= self.low) & (self.values < self.high)).all()
            torch._assert_async(holds, f"{self.name} must hold values >= {self.low} and below its limit")


def check_range(name: str, index: Tensor, low: int, high: int) -> None:
    """Raise ValueError unless all values are in [low, high); on a GPU, assert it without a host sync."""
    values = Range(name, index, low, high)
    raise_faults(values.faults())
    values.assert_values()


def check_rows(name: str, rule: str, bad: Tensor) -> None:
    """Raise ValueError if a row is `bad` (B,) bool; on a GPU, assert it without a host sync."""
    if _readable(bad):
        raise_faults(row_violations(name, rule, bad))
    if _has_unread_values(bad):
        torch._assert_async(~bad.any(), f"{name} must be {rule}")


def start_row_faults(row: Tensor) -> list[str]:
    """The fault of a start row (B, N) that can be read."""
    sound = not row.is_floating_point() or not _readable(row) or bool(_is_start_row(row))
    return [] if sound else [f"{START_ROW}, got others"]


def assert_start_row(row: Tensor) -> None:
    """Assert the values of a sound start row where they cannot be read."""
    if _has_unread_values(row):
        torch._assert_async(_is_start_row(row), START_ROW)


def _is_start_row(row: Tensor) -> Tensor:
    return ((row >= 0) & (row < float("inf"))).all()


def _readable(x: Tensor) -> bool:
    """Whether reading a value costs no host sync and breaks no compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _has_unread_values(x: Tensor) -> bool:
    """Whether x has values that nobody has read; a tensor on the meta device has none."""
    return not _readable(x) and x.device.type != "meta"
