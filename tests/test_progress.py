"""A bar on a terminal, lines in a log."""

import io
import itertools
import sys

import pytest

from dca_triton import progress as progress_module
from dca_triton.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr(monkeypatch, stream: io.StringIO) -> io.StringIO:
    """Within a test, not in a fixture: pytest sets stderr again between the two."""
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_log_holds_few_whole_lines(monkeypatch):
    log = stderr(monkeypatch, io.StringIO())
    assert list(progress(range(100_000), desc="embed", unit="photo")) == list(range(100_000))
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert len(lines) <= 2 and lines[-1].startswith("embed: 100000/100000 photo in ")


def test_lines_come_now_and_then(monkeypatch):
    log = stderr(monkeypatch, io.StringIO())
    clock = itertools.count(step=10)  # each look at the clock is ten seconds later
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr(progress_module.tqdm, "monitor_interval", 0)
    with progress(desc="train", total=20, initial=2, unit="epoch") as shown:
        for _ in range(18):
            shown.set_postfix(loss="0.5", refresh=False)
            shown.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == 4 and all(line.startswith("train: ") for line in lines)
    assert lines[-1].startswith("train: 20/20 epoch in ") and lines[-1].endswith(", loss=0.5")


@pytest.mark.parametrize("options", [{"disable": True}, {"leave": False}])
def test_a_short_loop_of_no_importance_writes_nothing(monkeypatch, options):
    log = stderr(monkeypatch, io.StringIO())
    list(progress(iter(range(1000)), desc="x", **options))
    assert log.getvalue() == ""


def test_without_a_total(monkeypatch):
    log = stderr(monkeypatch, io.StringIO())
    list(progress(iter(range(7)), desc="x", unit="photo"))
    assert log.getvalue().startswith("x: 7 photo in ")


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = stderr(monkeypatch, Terminal())
    list(progress(range(9), desc="x"))
    assert "\r" in terminal.getvalue() and "100%" in terminal.getvalue()


def test_no_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(3), desc="x")) == [0, 1, 2]
