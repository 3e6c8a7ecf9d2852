"""The tuner with faked timings, and the cost model's ranking."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from assessments import assess_here
from triton.runtime.errors import OutOfResources
from tuning_cases import KEY, A, B, C, on

from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Key
from dca_triton.tuning import ranking, tuner
from dca_triton.tuning.meter.assess import Assessment
from dca_triton.tuning.meter.launches import Job


def test_the_model_ranks_without_a_gpu_and_leaves_out_what_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Config(16, 64, 2, 1), Config(16, 256, 1, 1)
    monkeypatch.setattr(ranking, "assess_all", assess_here)
    monkeypatch.setattr(tuner, "candidates", lambda dtype, arch: [bad, good])
    ranked = tuner.rank("sm_90", ["rollout_row"], progress=False)
    ((choice, found),) = ranked.items()
    assert choice == (KEY, 197)
    assert [assessment.job.config for assessment in found] == [good]
    assert math.isfinite(found[0].clocks)
    assert "16/64/2/1" in tuner.ranking_table(ranked)
    monkeypatch.setattr(tuner, "candidates", lambda dtype, arch: [bad])
    with pytest.raises(RuntimeError, match=r"no candidate fits sm_90 .* for rollout_row step .* 197 tokens"):
        tuner.rank("sm_90", ["rollout_row"], progress=False)


def test_every_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"target must be 'sm_80' or .*, got 'sm_1'"):
        tuner.rank("sm_1")
    with pytest.raises(ValueError) as error:
        tuner.rank("sm_1", ["x"], [7], ["fp8"], [0])
    for reason in ("got 'sm_1'", "got ['x']", "got [7]", "got ['fp8']", "got [0]"):
        assert reason in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ops", []),
        ("ops", "pair_attention"),
        ("ops", [["pair_attention"]]),
        ("head_dims", 64),
        ("head_dims", [64.0]),
        ("dtypes", [torch.float16]),
        ("lengths", [197, -1]),
        ("lengths", [197.5]),
        ("device", torch.device("cpu")),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=f"^{name} must be "):
        tuner.tune(output=tmp_path / "new" / "table.json", **{name: value})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_heads_that_spill_on_a_gpu_are_refused_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(monkeypatch, "Fake", "gfx1100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"^head_dims must be .* one of \(16, .*64, 80, .*\), got \[72\]"):
        tuner.tune(device, head_dims=[72], output=tmp_path / "table.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(
        RuntimeError, match=r"device must be a CUDA or ROCm device, got a machine without one .`rank`"
    ):
        tuner.tune()


def test_tuning_keeps_the_fastest_and_continues_where_it_was_interrupted(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on(monkeypatch, "Fake", "sm_90")
    measured: list[Config] = []

    def order(
        target: str, tried: dict[tuple[Key, int], list[Config]], progress: bool, deadline: float
    ) -> dict:
        assert (target, deadline) == ("sm_90", math.inf)
        assert len(tried) == (1 if measured else 2)
        return {
            launch: [SimpleNamespace(job=SimpleNamespace(config=config)) for config in (A, C)]
            for launch in tried
        }

    def do_bench(launch: object, return_mode: str) -> float:
        assert return_mode == "median"
        assert current[-1] == device
        chosen = launch_table.choose("rollout_row", "step", 64, torch.float16, 197, device)
        measured.append(chosen)
        if len(measured) == 5:  # in the middle of the second length
            raise KeyboardInterrupt
        if chosen == A:
            raise OutOfResources(200_000, 100_000, "shared memory")
        return {B: 2.0, C: 1.0}[chosen]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    current: list[torch.device] = []

    @contextmanager
    def on_device(which: torch.device) -> Iterator[None]:
        current.append(which)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", on_device)
    monkeypatch.setattr(tuner, "order", order)
    monkeypatch.setattr(tuner, "problem", lambda *_, **__: None)
    monkeypatch.setattr(tuner.triton.testing, "do_bench", do_bench)
    run = dict(device=device, ops=["rollout_row"], dtypes=["fp16"], lengths=[197, 785], progress=False)
    with pytest.warns(UserWarning, match="no measured launch"), pytest.raises(KeyboardInterrupt):
        tuner.tune(**run)  # type: ignore[arg-type]
    assert not (configs / "Fake.json").exists()
    assert launch_table.read(configs / "Fake.json.unfinished") == {KEY: {197: C}}
    (choice,) = tuner.tune(**run)  # type: ignore[arg-type]
    assert measured == [B, A, C, B, A, B, A, C]
    assert choice == tuner.Choice(KEY, 785, C, 1.0, 2.0)
    assert launch_table.choose("rollout_row", "step", 64, torch.float16, 785, device) == C
    assert launch_table.read(configs / "Fake.json") == {KEY: {197: C, 785: C}}
    assert '"measured on Fake"' in (configs / "Fake.json").read_text()
    assert not (configs / "Fake.json.unfinished").exists()
    assert "64/64/8/2" in tuner.table([choice])


def test_the_deadline_keeps_what_is_measured_and_the_next_run_goes_on(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = on(monkeypatch, "Fake", "sm_90")
    clock = [0.0]

    def assess_all(jobs: list[Job], progress: bool) -> Iterator[tuple[Job, Assessment]]:
        for job in jobs:
            clock[0] += 1  # second
            yield job, SimpleNamespace(job=job, clocks=1.0)  # type: ignore[misc]

    def fastest(key: Key, n: int, *_: object) -> tuner.Choice:
        clock[0] += 10
        return tuner.Choice(key, n, A, 1.0, 1.0)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(ranking, "assess_all", assess_all)
    monkeypatch.setattr(tuner, "_fastest", fastest)
    monkeypatch.setattr(tuner, "candidates", lambda dtype, arch: [A, B])
    run = dict(device=device, ops=["rollout_row"], dtypes=["fp16"], lengths=[64, 197, 785], progress=False)
    # 5 seconds: of the third length one of two candidates is compiled, and the first length is timed.
    found = tuner.tune(**run, deadline=4.5)  # type: ignore[arg-type]
    assert [choice.n for choice in found] == []
    assert "Time is up: 3 of 3 choices are not measured" in capsys.readouterr().out
    assert not (configs / "Fake.json").exists()
    clock[0] = 0
    found = tuner.tune(**run, deadline=15)  # type: ignore[arg-type]
    assert [choice.n for choice in found] == [64]
    assert launch_table.read(configs / "Fake.json") == {KEY: {64: A}}
    assert launch_table.read(configs / "Fake.json.unfinished") == {KEY: {64: A}}
    found = tuner.tune(**run)  # type: ignore[arg-type]
    assert [choice.n for choice in found] == [197, 785]
    assert launch_table.read(configs / "Fake.json") == {KEY: {64: A, 197: A, 785: A}}
    assert not (configs / "Fake.json.unfinished").exists()


def test_attentions_are_compared_once_the_launches_are_chosen(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison reads the new launches; interrupted, it goes on; and the table says who wins."""
    device = on(monkeypatch, "Fake", "sm_90")
    pair = Key("pair_attention", "forward", 64, "fp16")
    directions = [pair._replace(direction=direction) for direction in launch_table.DIRECTIONS[pair.op]]
    compared: list[launch_table.AttentionKey] = []

    def times_of(key: launch_table.AttentionKey, _: torch.device) -> dict[str, float]:
        assert launch_table.choose(key.op, "dq", 64, torch.float16, 197, device) == A
        compared.append(key)
        if len(compared) == 2:
            raise KeyboardInterrupt
        return {"triton": 1.0, "flash": 0.5 if key.training else 2.0}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(tuner, "order", lambda target, tried, *_: {launch: [] for launch in tried})
    monkeypatch.setattr(tuner, "_fastest", lambda key, n, *_: tuner.Choice(key, n, A, 1.0, 1.0))
    monkeypatch.setattr(tuner.implementations, "times_of", times_of)
    run = dict(device=device, ops=[pair.op], dtypes=["fp16"], lengths=[197])
    with pytest.raises(KeyboardInterrupt):
        tuner.tune(**run)  # type: ignore[arg-type]
    assert launch_table.read(configs / "Fake.json") == {key: {197: A} for key in directions}
    assert tuner.tune(**run) == []  # type: ignore[arg-type]
    assert [key.training for key in compared] == [False, True, True]
    times = launch_table.read_times(configs / "Fake.json")
    assert [ms["flash"] for ms in times.values()] == [2.0, 0.5]
    out = capsys.readouterr().out
    assert "pair_attention with gradient, N=197: flash, which takes 0.50 of the kernels' time" in out
    assert not (configs / "Fake.json.unfinished").exists()
    tuner.tune(**run)  # type: ignore[arg-type]
    assert len(compared) == 5  # a new run measures everything again


@pytest.mark.parametrize("path", ["a file/table.json", "a file/folder/table.json"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_compiled(
    path: str, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on(monkeypatch, "Fake", "sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuner, "order", lambda *_: pytest.fail("it compiles"))
    (configs / "a file").touch()
    with pytest.raises(OSError, match=r"output must be a file that can be written, got .*table.json"):
        tuner.tune(device, output=configs / path)


@pytest.mark.parametrize("name", ["sm_90.json", "Other.json", "Fake.json.unfinished", "notes.txt", "folder"])
def test_other_files_are_not_overwritten(name: str, configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(monkeypatch, "Fake", "sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuner, "order", lambda *_: pytest.fail("it compiles"))
    launch_table.write(configs / "Other.json", "measured on Other", {KEY: {197: A}})
    launch_table.write(configs / "Fake.json.unfinished", "measured on Other", {KEY: {197: A}})
    (configs / "notes.txt").write_text("notes")
    (configs / "folder").mkdir()
    before = {path: path.read_bytes() for path in configs.iterdir() if path.is_file()}
    output = configs / name.removesuffix(".unfinished")
    with pytest.raises(ValueError, match=rf"must be a new file or a table measured on Fake, got .*{name}"):
        tuner.tune(device, output=output)
    assert {path: path.read_bytes() for path in configs.iterdir() if path.is_file()} == before


def test_a_gpu_on_which_nothing_runs_is_an_error(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(monkeypatch, "Fake", "sm_90")

    def do_bench(launch: object, return_mode: str) -> float:
        raise OutOfResources(200_000, 100_000, "shared memory")

    monkeypatch.setattr(tuner, "problem", lambda *_, **__: None)
    monkeypatch.setattr(tuner.triton.testing, "do_bench", do_bench)
    with (
        pytest.warns(UserWarning, match="no measured launch"),
        pytest.raises(RuntimeError, match="no candidate fits Fake for rollout_row step"),
    ):
        tuner._fastest(KEY, 197, device, [A, C])


@pytest.mark.parametrize("entries", [[], {}, [{"n": 1}, {"n": 2}], {"a": [1], 'b "c"': None}], ids=repr)
def test_lines_are_valid_json_with_an_entry_per_line(entries: list | dict, tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    launch_table.write_lines(path, {"source": 'a "test"', "versions": {"x": "1"}}, {"entries": entries})
    document = json.loads(path.read_text())
    assert document == {"source": 'a "test"', "versions": {"x": "1"}, "entries": entries}
    assert sum(line.startswith("    ") for line in path.read_text().splitlines()) == len(entries)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        launch_table.write_lines(path, {}, {"entries": [object()]})
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
