"""An ablation from a config to its table: same batches, resumption, overrides, failures and refusals."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dca_triton.checkpoint import load_checkpoint
from dca_triton.cli import ablate, training_run
from dca_triton.cli.ablate_plan import DEFAULT_VARIANTS, Plan
from dca_triton.cli.demo import face_model
from dca_triton.cli.main import main
from dca_triton.cli.parser import parser_of
from dca_triton.cli.training_run import prepare
from dca_triton.training.epoch import Epoch

VARIANTS: dict[str, Any] = {
    "few": None,
    "many, hard": {"model": {"top_k_ratio": 0.9}, "pairs": {"strategy": "mixed"}},
}
FACES = Path(__file__).parents[2] / "examples/faces.yaml"
STEPS = 2  # of an epoch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of two epochs on noise of three classes, four photos each to train and two to test."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label in range(3):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(60 * label, 60 * label + 120, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    options = {
        "model": {"backbone_name": "test_vit", "layout": "paper", "pretrained": False, "timm": {"depth": 1}},
        "data": {
            "name": "folder",
            "root": str(root),
            "size": [32, 32],
            "resize": 36,
            "batch_size": 6,
            "workers": 0,
        },
        "trainer": {"lr": 1e-3, "optimizer": "adamw", "progress": False},
        "epochs": 2,
    }
    file = root / "config.yaml"
    file.write_text(yaml.safe_dump(options))
    (root / "variants.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False))
    return file


@pytest.fixture(scope="module", autouse=True)
def one_turn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "TURNS", 1)
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """A digest of the batch and the seed of every training step; those that are timed have a rate of 0."""
    taken: list[str] = []
    step = Epoch.step

    def spy(self: Epoch, group: list, images: int) -> None:
        if self.run.optimizer.param_groups[0]["lr"]:
            parts = [part for batch in group for part in (batch["image"].numpy().tobytes(), batch["path"])]
            place = self.run.progress.epoch, self.run.progress.step, self.objective.seed
            taken.append(hashlib.sha256(repr((parts, place)).encode()).hexdigest())
        step(self, group, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Epoch, "step", spy)
        yield taken


@pytest.fixture
def steps() -> Iterator[list[str]]:
    with recorded() as taken:
        yield taken


@pytest.fixture(scope="module")
def whole(
    config: Path, one_turn: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[str]]:
    """The folder of an ablation of four runs, which no test changes; what it printed; its steps."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with recorded() as taken, contextlib.redirect_stdout(io.StringIO()) as printed:
        call(config, folder)
    return folder, printed.getvalue(), taken


def call(config: Path, output: Path, *more: str) -> None:
    variants = f"--variants={config.parent / 'variants.yaml'}"
    main(["ablate", f"--config={config}", f"--output={output}", variants, "--seeds=2", *more])


def scores(output: Path) -> dict[str, Any]:
    """What does not depend on the clock."""
    found = json.loads((output / "ablation.json").read_text())["variants"]
    kept = ("scores", "mean", "sd", "difference", "standard_error", "all_scores", "failures")
    return {name: {key: each[key] for key in kept} for name, each in found.items()}


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_from_config_to_table(config: Path, whole: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    out, text, steps = whole
    found = json.loads((out / "ablation.json").read_text())
    assert (found["first"], found["seeds"], found["part"]) == ("few", [0, 1], "test of folder")
    assert found["score"] == "sum_top1" and text.startswith("| variant | sum_top1, % | SD |")
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    own: dict[str, list[float]] = {}
    for name, each in found["variants"].items():
        own[name] = []
        for seed in (0, 1):
            lines = (out / name / f"seed{seed}/metrics.jsonl").read_text().splitlines()
            assert len(lines) == 2
            assert each["all_scores"][str(seed)] == json.loads(lines[-1])
            own[name].append(json.loads(lines[-1])["sum_top1"])
        assert list(each["scores"].values()) == own[name]
        assert each["overrides"] == (VARIANTS[name] or {})
        mean, deviation = 100 * np.mean(own[name]), 100 * np.std(own[name], ddof=1)
        assert f"| {name} | {mean:.2f} | {deviation:.2f} | 2 |" in text
    gaps = np.subtract(own["many, hard"], own["few"])
    assert f"| 2 | {100 * gaps.mean():+.2f} | {100 * gaps.std(ddof=1) / 2**0.5:.2f} |" in text
    times = [found["variants"][name]["step_seconds"] for name in VARIANTS]
    assert f"| {times[1] / times[0]:.2f} |\n" in text and "| - | - | 1.00 |\n" in text
    assert "median of 1 training steps" in text and "batch size 6, on " in text

    a0, b0, a1, b1 = (steps[i : i + 2 * STEPS] for i in range(0, 8 * STEPS, 2 * STEPS))
    assert a0 == b0 and a1 == b1  # every variant has the same batches
    assert not set(a0) & set(a1) and len(set(a0)) == 2 * STEPS  # each seed and step has others

    main(["train", f"--config={config}", "--seed=1", f"--output={tmp_path / 'alone'}"])
    alone, run = (
        load_checkpoint(folder / "checkpoint.pt")["model_state_dict"]
        for folder in (tmp_path / "alone", out / "few/seed1")
    )
    assert all(torch.equal(alone[name], run[name]) for name in alone)
    other = load_checkpoint(out / "many, hard/seed1/checkpoint.pt")["model_state_dict"]
    assert not all(torch.equal(alone[name], other[name]) for name in alone)
    configs = [
        yaml.safe_load((f / "config.yaml").read_text()) for f in (tmp_path / "alone", out / "few/seed1")
    ]
    assert configs[0] == configs[1]
    scored = tmp_path / "scores.json"
    main(["evaluate", f"--run={out / 'many, hard/seed1'}", f"--file={scored}"])
    assert json.loads(scored.read_text())["sum_top1"] == own["many, hard"][1]


def test_goes_on_where_it_was_stopped(
    config: Path,
    whole: tuple[Path, str, list[str]],
    tmp_path: Path,
    steps: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unbroken, _, every_step = whole
    stops = 2 * STEPS + 1  # within the second run
    spied = Epoch.step

    def interrupting(self: Epoch, group: list, images: int) -> None:
        spied(self, group, images)
        if len(steps) == stops:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Epoch, "step", interrupting)
        with pytest.raises(SystemExit) as stopped:
            call(config, tmp_path / "out")
    assert stopped.value.code == 130
    assert "1 of 4 runs are done; the same command goes on." in capsys.readouterr().err
    assert not (tmp_path / "out/ablation.json").exists()
    first = tree(tmp_path / "out/few/seed0")

    call(config, tmp_path / "out", "--trainer.keep_last=3")  # changes no result
    assert steps == every_step  # no step was taken twice, none was left out
    assert tree(tmp_path / "out/few/seed0") == first
    assert scores(tmp_path / "out") == scores(unbroken)
    steps.clear()
    call(config, tmp_path / "out", "--seeds=3")  # two more runs
    assert len(steps) == 4 * STEPS
    assert [len(each["scores"]) for each in scores(tmp_path / "out").values()] == [3, 3]

    before = tree(tmp_path / "out")
    with pytest.raises(
        SystemExit, match=r"hold the same ablation, got '.*few/seed0', where epochs must be 2, got 3"
    ):
        call(config, tmp_path / "out", "--epochs=3")
    assert tree(tmp_path / "out") == before
    # A kill between the last metrics and the last checkpoint: the run is not done.
    folder = tmp_path / "out/many, hard/seed1"
    os.replace(folder / "checkpoint.1.pt", folder / "checkpoint.pt")
    steps.clear()
    call(config, tmp_path / "out")
    assert len(steps) == STEPS
    (folder / "config.yaml").unlink()
    with pytest.raises(SystemExit, match=r"seed1', where checkpoints must have config.yaml beside them"):
        call(config, tmp_path / "out")


def test_default_variants_on_the_settings_of_make_ablation(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/faces.yaml, with a smaller model and fewer photos."""
    data = yaml.safe_load(config.read_text())["data"]
    small = [f"--data.{name}={value}" for name, value in data.items()]
    small += ["--model.backbone_name=test_vit", "--model.timm={depth: 1}", "--trainer.progress=false"]
    short = ["--epochs=1", "--trainer.warmup_epochs=0", "--seeds=1"]
    main(["ablate", f"--config={FACES}", *small, *short, f"--output={tmp_path}"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["| sa", "| sa+glca", "| sa+pwca", "| all", "| all, readout both"]
    assert rows[0][4:] == ["-", "-", "1.00 |"] and all(row[4] != "-" for row in rows[1:])
    found = json.loads((tmp_path / "ablation.json").read_text())["variants"]
    assert [each["overrides"] for each in found.values()] == list(DEFAULT_VARIANTS.values())
    losses = {
        name: {key for key in each["all_scores"]["0"] if key.endswith("_loss")}
        for name, each in found.items()
    }
    assert losses["sa"] == {"total_loss", "sa_loss"} and "pwca_loss" not in losses["sa+glca"]
    assert losses["all"] == {"total_loss", "sa_loss", "glca_loss", "pwca_loss"}
    arguments = load_checkpoint(tmp_path / "all, readout both/seed0/checkpoint.pt")["model_arguments"]
    assert (arguments["sa_readout"], arguments["glca_readout"]) == ("both", "both")


def test_faces_are_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make ablation` has the model and the settings of the demo, and its variants the same backbone."""
    monkeypatch.chdir(tmp_path)
    given = parser_of("ablate").parse_args([f"--config={FACES}"])
    runs = Plan(parser_of("train"), given).runs(DEFAULT_VARIANTS, 1)
    trainers = [prepare(run.experiment).trainer for run in runs]
    for trainer in trainers:
        own, first = (t.model.backbone.state_dict() for t in (trainer, trainers[0]))
        assert all(torch.equal(own[name], first[name]) for name in first)
    whole = trainers[3]
    demo = face_model(40, "fgvc", 0.1)
    assert {n: p.shape for n, p in whole.model.named_parameters()} == {
        n: p.shape for n, p in demo.named_parameters()
    }
    assert (whole.run.settings["optimizer"], whole.lr, whole.warmup_epochs) == ("adamw", 1e-3, 10)
    assert (whole.run.settings["label_smoothing"], whole.epoch.clip_grad) == (0.1, 1.0)
    assert (len(whole.run.batches), whole.run.batches.batch_size) == (15, 16)


def test_a_score_that_a_variant_lacks(config: Path, tmp_path: Path) -> None:
    sentence = "variant 'sa': --score must be one of sa_top1, sa_top5, sum_top1, sum_top5, got 'glca_top1'"
    with pytest.raises(SystemExit, match=sentence):
        main(["ablate", f"--config={config}", "--score=glca_top1", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_failed_run_does_not_lose_the_others(
    config: Path,
    whole: tuple[Path, str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that is done before it, and one that comes after it."""
    shutil.copytree(whole[0] / "few", tmp_path / "few")
    step = Epoch.step

    def failing(self: Epoch, group: list, images: int) -> None:
        if self.run.model.top_k_ratio == 0.9 and self.objective.seed == 0 and self.run.progress.epoch:
            raise RuntimeError("the loss is nan")
        step(self, group, images)

    reason = "1 of 4 runs failed; the same command tries again .many, hard, seed 0: the loss is nan."
    with monkeypatch.context() as patch:
        patch.setattr(Epoch, "step", failing)
        with (
            pytest.warns(UserWarning, match="many, hard, seed 0 failed: the loss is nan"),
            pytest.raises(SystemExit, match=reason),
        ):
            call(config, tmp_path)
    found = json.loads((tmp_path / "ablation.json").read_text())["variants"]["many, hard"]
    assert found["failures"] == {"0": "the loss is nan"} and list(found["scores"]) == ["1"]
    assert found["pairs"] == 1 and found["standard_error"] is None
    assert "| many, hard | " in capsys.readouterr().out
    call(config, tmp_path)
    assert not scores(tmp_path)["many, hard"]["failures"]


def test_no_run_ends_well(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Epoch, "step", failing)
    with (
        pytest.warns(UserWarning),
        pytest.raises(SystemExit, match=r"no run ended well .few, seed 0: no memory;"),
    ):
        call(config, tmp_path, "--seeds=1")
    assert not list(tmp_path.rglob("*.*"))


def test_steps_that_cannot_be_timed_do_not_lose_the_scores(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is memory for one model at a time, as in the check and in training, and not for all variants'."""
    models: list[weakref.ref] = []

    def prepare(*arguments: Any) -> Any:
        if any(model() is not None for model in models):
            raise RuntimeError("no memory")
        ready = training_run.prepare(*arguments)
        models.append(weakref.ref(ready.trainer.model))
        return ready

    monkeypatch.setattr("dca_triton.cli.ablate_runs.prepare", prepare)
    with pytest.warns(UserWarning, match="the training steps could not be timed: no memory"):
        call(config, tmp_path, "--seeds=1", "--epochs=1")
    assert "| 1 | - | - | - |\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "ablation.json").read_text())["timed"] == "not timed: no memory"


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ({"x": {"model": {"nope": 1}}}, "variant 'x': options must be ones that .* lists, got nope"),
        ({"x": {"nope": 1}}, "variant 'x': options must be ones that .* lists, got nope"),
        (
            {"x": {"model": {"top_k_ratio": 3}}},
            r"variant 'x': --model.top_k_ratio must be in \(0, 1\], got 3",
        ),
        ({"x": {"trainer": {"lr": "fast"}}}, "variant 'x': --trainer.lr must be a number, got fast"),
        (
            {"x": {"pairs": {"strategy": "best"}}},
            "variant 'x': --pairs.strategy must be 'random', .* got best",
        ),
        ({"x": {"epochs": 0}}, "variant 'x': --epochs must be an integer >= 1, got 0"),
        (
            {"x": {"trainer": {"warmup_epochs": 2}}},
            "variant 'x': warmup_epochs must be less than num_epochs, 2",
        ),
        ({"x": {"model": {"backbone_name": "y"}}}, "variant 'x': backbone_name must be a timm model"),
        (
            {"x": {"trainer": {"precision": "bf16"}}, "y": {}},
            "variant '.': precision must be '.*' as in the trainer",
        ),
        ({"x": {"transfer": "nowhere"}}, "variant 'x': --transfer must be a checkpoint or the folder"),
        ({"x": {"seed": 1, "output": "y"}}, "variant 'x' must not override config, .* got output, seed"),
        (
            {"x": {"data": {"holdout": 1}}},
            "variant 'x' must keep data.holdout, so that all are scored on the same",
        ),
        ({"x": 3}, "variant 'x' of --variants must be a mapping of options, got 3"),
        ({"x": {"model": {"backbone_name": ""}}}, "backbone_name in model in x in .* must have a value"),
        ({"a/b": {}}, "a variant's name must be one that a folder can have, got 'a/b'"),
        ({"..": {}}, r"a variant's name must be one that a folder can have, got '\.\.'"),
        ({}, "--variants must hold at least one variant"),
        ([1], r"--variants must hold a mapping of options, got .* with \[1\]"),
    ],
)
def test_refused_variants(config: Path, tmp_path: Path, variants: Any, sentence: str) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(yaml.safe_dump(variants))
    with pytest.raises(SystemExit, match=f"^dca-triton: {sentence}"):
        call(config, tmp_path / "out", f"--variants={file}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--seeds=0", "--seeds must be an integer >= 1, got 0"),
        ("--seeds=many", "--seeds must be an integer, got many"),
        (f"--seed={2**63 - 1}", "variant 'few': --seed must be an integer in .*, got 9223372036854775808"),
        ("--score=mAP", "variant 'few': --score must be one of sa_top1, .*, got 'mAP'"),
        ("--resume=auto", "options must be ones that `dca-triton ablate --help` lists, got --resume=auto"),
        ("--variants=nowhere.yaml", "--variants must be a YAML file, got 'nowhere.yaml' .No such file"),
        ("--data.root=nowhere", "variant 'few': "),
    ],
)
def test_refused_options(config: Path, tmp_path: Path, option: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=f"^dca-triton: {sentence}"):
        call(config, tmp_path / "out", option)
    assert not (tmp_path / "out").exists()
