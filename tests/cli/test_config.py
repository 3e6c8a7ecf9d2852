"""The config.yaml of a run."""

import contextlib
from pathlib import Path

import pytest

from dca_triton.cli import config


def test_a_config_that_cannot_be_written_leaves_the_earlier_one_and_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_config(tmp_path, "seed: 0")
    (tmp_path / "evaluation.json").write_text("{}")
    write = config.atomic_write

    @contextlib.contextmanager
    def full(*arguments):
        with write(*arguments) as file:
            yield file
            raise OSError("no space left on device")

    monkeypatch.setattr(config, "atomic_write", full)
    with pytest.raises(OSError, match="no space"):
        config.write_config(tmp_path, "seed: 1")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "config.yaml": "seed: 0",
        "evaluation.json": "{}",
    }
    monkeypatch.undo()
    config.write_config(tmp_path, "seed: 1")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.yaml": "seed: 1"}
