"""Markers and fixtures common to all tests."""

import gc
import signal
from typing import Any

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from tuning_cases import configs

# A slow machine is no fault, and a failure must be repeatable.
settings.register_profile("dca_triton", deadline=None, derandomize=True)
settings.load_profile("dca_triton")

# A shell starts background jobs with Ctrl-C ignored, and the processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["configs"]  # fixtures that live beside their cases


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """Leave a million objects of imported modules out of each collection of garbage."""
    gc.freeze()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved during the test."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved
