"""The scripts of examples/ run, with what they promise."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


def test_every_script_is_tested_and_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in scripts] == ["operations", "pictures", "training_loop"]
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 50 for path in scripts)


def test_operations(capsys: pytest.CaptureFixture[str]) -> None:
    script("operations")["main"]()
    printed = capsys.readouterr().out
    assert "(4, 20, 3, 64)" in printed and "sums to 1.0000" in printed and "'0.00'" in printed


def test_training_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("training_loop")["main"](steps=20) > 0.9
    assert "step  10" in capsys.readouterr().out


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = script("pictures")
    photos = example["train"](tmp_path)
    assert len(photos) == 3
    example["main"](tmp_path, photos)
    sheet = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert all(f"{color}/0.png" in sheet for color in ("red", "green", "blue"))
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "sheet.html" in capsys.readouterr().out
