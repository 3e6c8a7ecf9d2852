"""`python -m bench.gpu` with every measurement faked: what it runs, writes, and returns."""

import re
import time
from importlib.metadata import version
from zipfile import ZipFile

import fakes
import pytest
import torch

from bench import __main__ as bench_main
from bench import gpu, registry, results
from bench.measure import Disagreement, Measured
from dca_triton.ops import launch_table


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run `python -m bench.gpu` on a fake GPU; return its exit status and the steps it took."""

    def run(tests_status: int = 0, milliseconds: float = 1.0, tune_fails: bool = False):
        steps = []
        fake = fakes.document(milliseconds=milliseconds)

        def gpu_tests(log):
            steps.append("tests")
            log.write_text("36 passed")
            return tests_status

        def tune(device, head_dims, dtypes, deadline):
            assert 14 * 60 < deadline - time.monotonic() <= 15 * 60
            steps.append("tune")
            if tune_fails:
                raise OSError("output must be a file that can be written")
            return []

        def measured(chosen, device, output, deadline):
            assert chosen[0].name == "train step"
            assert 29 * 60 < deadline - time.monotonic() <= 30 * 60
            steps.append("measure")
            return fake, bench_main.publish(fake, output)

        monkeypatch.setattr("sys.argv", ["bench.gpu", "--output", str(tmp_path / "out")])
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        monkeypatch.setattr(results, "device_name", lambda device: "Fake_GPU")
        monkeypatch.setattr(gpu, "gpu_tests", gpu_tests)
        monkeypatch.setattr(gpu.tuner, "tune", tune)
        monkeypatch.setattr(gpu, "run", measured)
        monkeypatch.setattr(gpu, "BASELINES", tmp_path / "baselines")
        monkeypatch.setattr(gpu, "info", lambda: "a GPU")
        monkeypatch.setattr(launch_table, "CONFIGS", tmp_path)
        (tmp_path / "Fake_GPU.json").write_text("{}")
        with pytest.raises(SystemExit) as end:
            gpu.main()
        return end.value.code, steps

    return run


def test_without_a_baseline_it_passes_and_says_so(command, capsys, tmp_path):
    assert command() == (None, ["tests", "tune", "measure"])
    assert "This device has no baseline yet" in capsys.readouterr().out
    written = {"Fake_GPU.json", "Fake_GPU.md", "rollout_row.png", "tests.txt"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == written | {"Fake_GPU.zip"}
    with ZipFile(tmp_path / "out/Fake_GPU.zip") as archive:
        assert set(archive.namelist()) == written | {"environment.txt", "table/Fake_GPU.json"}
        assert f"torch=={version('torch')}\n" in archive.read("environment.txt").decode()


def test_its_results_serve_as_the_baseline(command, capsys, tmp_path):
    command()
    results.write(tmp_path / "baselines/Fake_GPU.json", results.read(tmp_path / "out/Fake_GPU.json"))
    assert command()[0] is None
    assert "Every figure is within 5% of the baseline" in capsys.readouterr().out


def test_a_planted_regression_ends_it_with_its_name(command, tmp_path):
    results.write(tmp_path / "baselines/Fake_GPU.json", fakes.document())
    status, _ = command(milliseconds=1.06)
    assert status.startswith(
        "first of 3 regressions: rollout_row B=2 N=128 H=3 D=64 L=12 fp32: library: median"
    )


@pytest.mark.parametrize("damage", [b"{", b"{}", None])
def test_a_bad_baseline_ends_it_before_anything_runs(damage, command, tmp_path):
    file = tmp_path / "baselines/Fake_GPU.json"
    results.write(file, fakes.document(device="Other_GPU"))
    if damage:
        file.write_bytes(damage)
    status, steps = command()
    assert status.startswith("baseline must be ")
    assert steps == []


def test_failing_tuning_is_a_sentence(command):
    status, steps = command(tune_fails=True)
    assert status == "tuning failed: output must be a file that can be written"
    assert steps == ["tests", "tune"]


def test_failing_tests_end_it_before_anything_is_measured(command, tmp_path):
    status, steps = command(tests_status=1)
    assert "the GPU tests failed (pytest exit status 1)" in status
    assert steps == ["tests"]
    with ZipFile(tmp_path / "out/Fake_GPU.zip") as archive:
        assert set(archive.namelist()) == {"tests.txt", "environment.txt", "table/Fake_GPU.json"}


def test_what_the_tests_print_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu.sys, "executable", "/bin/echo")
    assert gpu.gpu_tests(tmp_path / "tests.txt") == 0
    assert (tmp_path / "tests.txt").read_text() == capsys.readouterr().out
    assert "-m gpu tests" in (tmp_path / "tests.txt").read_text()


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench.gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="PyTorch finds no GPU"):
        gpu.main()


def test_committed_baselines_are_of_their_name():
    for file in gpu.BASELINES.glob("*.json"):
        document = results.read(file)
        assert file.stem == document["machine_info"]["device"] == launch_table.sanitized(file.stem)
        assert document["machine_info"]["kind"] == "cuda"


def test_what_does_not_fit_the_memory_is_left_out_and_reported(monkeypatch, tmp_path, capsys):
    small, large = [b for b in registry.benchmarks(fakes.CPU) if b.name == "local_attention"][:2]

    def measured(paths, dtype, device, seconds):
        if len(timed) == 1:
            raise torch.OutOfMemoryError
        timed.append(paths)
        figures = {"eager": Measured([2.0, 2.0], 100), "library": Measured([1.0, 1.0], 50)}
        return figures, ["peer: it does not run"]

    timed = []
    monkeypatch.setattr(bench_main, "measure", measured)
    monkeypatch.setattr(bench_main, "peaks", lambda device: {"matmul fp32": 1e12, "copy": 1e9})
    document, _ = bench_main.run([small, large], fakes.CPU, tmp_path)
    assert {entry["group"] for entry in document["benchmarks"]} == {small.title}
    reason = f"{large.title}: one of its paths needs more memory than this device has"
    assert document["left_out"] == [f"{small.title}: peer: it does not run", reason]
    assert f"Not measured:\n\n- {small.title}: peer: it does not run\n- {reason}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"nothing was measured:\n{re.escape(reason)}"):
        bench_main.run([large], fakes.CPU, tmp_path)
    assert not torch.backends.cudnn.allow_tf32  # else a training step of two formulations cannot agree
    assert not list(tmp_path.glob("*.unfinished*"))


def test_what_would_not_end_in_time_is_left_out(monkeypatch, tmp_path):
    chosen = [b for b in registry.benchmarks(fakes.CPU) if b.name.endswith("_attention")][:4]
    assert [b.name for b in chosen] == ["pair_attention", "local_attention"] * 2
    clock = [0.0]

    def measured(paths, dtype, device, seconds):
        clock[0] += 40  # with compilation
        return {"library": Measured([1.0], 50)}, []

    monkeypatch.setattr(bench_main, "measure", measured)
    monkeypatch.setattr(bench_main, "peaks", lambda device: {"matmul fp32": 1e12, "copy": 1e9})
    monkeypatch.setattr(bench_main.time, "monotonic", lambda: clock[0])
    document, _ = bench_main.run(chosen, fakes.CPU, tmp_path, deadline=100)
    assert [entry["group"] for entry in document["benchmarks"]] == [b.title for b in chosen[:2]]
    assert document["left_out"] == [f"{b.title}: there was no time left for it" for b in chosen[2:]]
    assert clock[0] <= 100


def test_an_interrupted_run_keeps_the_earlier_results(monkeypatch, tmp_path):
    first, second = [b for b in registry.benchmarks(fakes.CPU) if b.name == "local_attention"][:2]

    def measured(paths, dtype, device, seconds):
        if interrupted and len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(paths)
        return {"eager": Measured([2.0, 2.0], 100), "library": Measured([1.0, 1.0], 50)}, []

    calls, interrupted = [], False
    monkeypatch.setattr(bench_main, "measure", measured)
    monkeypatch.setattr(bench_main, "peaks", lambda device: {"matmul fp32": 1e12, "copy": 1e9})
    document, file = bench_main.run([first, second], fakes.CPU, tmp_path)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        bench_main.run([first, second], fakes.CPU, tmp_path)
    assert results.read(file) == document
    (unfinished,) = tmp_path.glob("*.unfinished.json")
    assert {entry["group"] for entry in results.read(unfinished)["benchmarks"]} == {first.title}


def test_paths_that_disagree_end_a_run_with_a_sentence(monkeypatch, tmp_path):
    def measured(paths, dtype, device, seconds):
        raise Disagreement("out differs")

    (first, *_) = registry.benchmarks(fakes.CPU)
    monkeypatch.setattr(bench_main, "measure", measured)
    monkeypatch.setattr(bench_main, "peaks", lambda device: {})
    with pytest.raises(SystemExit, match=f"{re.escape(first.title)}: out differs"):
        bench_main.run([first], fakes.CPU, tmp_path)
    assert list(tmp_path.iterdir()) == []
