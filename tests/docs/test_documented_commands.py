"""Every `dca-triton` line of the documentation is understood by the command line."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dca_triton.cli import main, parser

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def lines() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    found = [line for text in texts for block in BLOCK.findall(text) for line in block.splitlines()]
    piped = [line.rpartition(" | ")[2].partition(" > ")[0] for line in found]
    return [line for line in piped if line.startswith("dca-triton ")]


def test_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[str] = []

    def instead(name: str) -> Any:
        @functools.wraps(parser.COMMANDS[name])
        def record(*run: Any, **options: Any) -> None:
            given = [option for option, value in options.items() if value and option != "selection"]
            called.append(f"{name} {' '.join(given)}".strip())
            if name == "train":
                experiment, _, save_config = run
                experiment.output.mkdir(parents=True, exist_ok=True)
                (experiment.output / "checkpoint.pt").touch()
                save_config()

        return record

    for name in list(parser.COMMANDS):
        monkeypatch.setitem(parser.COMMANDS, name, instead(name))
    for line in lines():
        main(shlex.split(line, comments=True)[1:])
    assert len(called) == len(lines()) >= 10
    assert {"visualize photos file distractors", "evaluate metric file", "evaluate rerank"} <= set(called)
    assert {"embed file photos", "export run target", "export run target fp16"} <= set(called)
    assert (tmp_path / "runs/market/config.yaml").is_file()
    assert not [line for line in lines() if "config.yaml" in line]  # --run names a run


def test_unknown_options_are_refused() -> None:
    with pytest.raises(SystemExit, match="dca-triton: "):
        main(["visualize", "--no-such-option", "1"])
