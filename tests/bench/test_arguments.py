"""Commands refuse bad arguments with a sentence, before anything is measured or written."""

import runpy
from pathlib import Path

import pytest

from bench import __main__ as bench_main
from bench import gpu, reid_metrics
from bench.meter import __main__ as static_main

COMMANDS = {"bench": bench_main, "gpu": gpu, "static": static_main, "reid": reid_metrics}
BAD = [
    ("bench", ["--threads", "0"], "must be an integer >= 1, got '0'"),
    ("bench", ["--threads", "two"], "must be an integer >= 1, got 'two'"),
    ("bench", ["--threads", "9" * 30], "must be an integer >= 1"),
    ("bench", ["--only", "["], "must be a regular expression, got '['"),
    ("bench", ["--only", "nothing"], "must match the title of a benchmark, got 'nothing'"),
    ("bench", ["--device", "tpu"], "on this machine, got 'tpu'"),
    ("bench", ["--device", "meta"], "on this machine, got 'meta'"),
    ("bench", ["--device", "cuda:99"], "on this machine, got 'cuda:99'"),
    ("bench", ["--output", "file/x"], "must be a folder that can be written to, got 'file/x'"),
    ("bench", ["--output", "file"], "must be a folder that can be written to, got 'file'"),
    ("gpu", ["--output", "file"], "must be a folder that can be written to, got 'file'"),
    ("static", ["--arch", "sm_1"], "invalid choice: 'sm_1'"),
    ("static", ["--baseline", "missing.json"], "must be a baseline written by --write-baseline"),
    ("static", ["--baseline", "file"], "must be a baseline written by --write-baseline"),
    ("static", ["--baseline", "other.json"], "must be a baseline written by --write-baseline"),
    ("static", ["--baseline", "."], "must be a baseline written by --write-baseline"),
    ("static", ["--write-baseline", "--arch", "sm_80"], "must be used without --arch"),
    ("static", ["--matrix", "--baseline", "x"], "not allowed with argument"),
    ("static", ["--write-baseline", "--baseline", "x"], "not allowed with argument"),
    ("reid", ["--queries", "0"], "must be an integer >= 1, got '0'"),
    ("reid", ["--width", "-1"], "must be an integer >= 1, got '-1'"),
]


@pytest.mark.parametrize(("command", "arguments", "sentence"), BAD)
def test_bad_arguments(command, arguments, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text")
    Path("other.json").write_text('{"figures": {"a": {"registers": 1}}}')
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as end:
        COMMANDS[command].main()
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other.json"}


def test_a_selection_does_not_replace_the_results_of_all_benchmarks(monkeypatch, tmp_path):
    outputs = []

    def run(chosen, device, output):
        outputs.append(output)
        return {"benchmarks": []}, output

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_main, "run", run)
    monkeypatch.setattr(bench_main.gate, "missed_targets", lambda document: [])
    monkeypatch.setattr(bench_main.torch, "set_num_threads", lambda count: None)
    for arguments in ([], ["--only", "rollout"], ["--only", "rollout", "--output", "here"]):
        monkeypatch.setattr("sys.argv", ["bench", *arguments])
        bench_main.main()
    assert outputs == [Path("runs/bench"), Path("runs/bench-only"), Path("here")]


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", ["bench", "bench.gpu", "bench.meter", "bench.reid_metrics"])
def test_help_is_printed(module, monkeypatch, capsys):
    """As by `python -m`, but in this process, which has imported PyTorch."""
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module(module, run_name="__main__")
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
