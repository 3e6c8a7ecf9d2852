"""Temporary launch tables for tests, and a fake GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Gpu, Key

KEY = Key("rollout_row", "step", 64, "fp16")
A, B, C = Config(16, 16, 4, 1), Config(32, 32, 4, 1), Config(64, 64, 8, 2)


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a temporary folder of launch tables, with empty caches."""
    monkeypatch.setattr(launch_table, "CONFIGS", tmp_path)
    launch_table.forget()
    launch_table.write(tmp_path / "sm_80.json", "static model", {KEY: {197: A}})
    launch_table.write(tmp_path / "sm_90.json", "static model", {KEY: {197: B}})
    launch_table.write(tmp_path / "gfx942.json", "static model", {KEY: {197: C}})
    yield tmp_path
    launch_table.forget()


def on(monkeypatch: pytest.MonkeyPatch, name: str, arch: str) -> torch.device:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(launch_table, "gpu_of", lambda _: Gpu(name, arch))
    return device
