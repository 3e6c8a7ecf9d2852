"""The commands from a folder of photos to scores, features and pictures, and their answers to bad input."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dca_triton import DualAttentionModel, PairSampler
from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.cli.main import main
from dca_triton.cli.options import DataOptions
from dca_triton.cli.parser import COMMANDS
from dca_triton.training import DualAttentionTrainer
from dca_triton.version import __version__

SMALL = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
SMALL += ["--model.timm={depth: 2}"]
QUICK = ["--trainer.progress=false", "--trainer.warmup_epochs=0", "--trainer.min_lr=0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of bright, middling and dark noise, four photos to train and two to test."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label, level in enumerate((0, 80, 160)):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(level, level + 80, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training of two epochs left its config, metrics and checkpoint."""
    output = tmp_path_factory.mktemp("run")
    main(["train", "--config=fgvc", *SMALL, *data(photos), "--epochs=2", f"--output={output}"])
    return output


def data(photos: Path) -> list[str]:
    sizes = ["--data.size=[64, 64]", "--data.resize=70", "--data.batch_size=6", "--data.workers=0"]
    return ["--data.name=folder", f"--data.root={photos}", *sizes, *QUICK]


def test_train_then_evaluate_by_the_config_that_training_wrote(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    capsys.readouterr()
    main(["evaluate", f"--config={run / 'config.yaml'}"])
    found = json.loads((run / "evaluation.json").read_text())
    scored = {"checkpoint": "checkpoint.pt", "dataset": "folder", "part": "test", "photos": {"test": 6}}
    assert found == scored | {name: lines[-1][name] for name in found.keys() - scored.keys()}
    assert f"{100 * found['sum_top1']:.2f}%" in capsys.readouterr().out


def test_weights_start_another_training(run: Path, tmp_path: Path) -> None:
    again = ["--config", str(run / "config.yaml"), "--epochs=1", f"--output={tmp_path}", "--trainer.lr=1e-12"]
    main(["train", *again, f"--transfer={run / 'checkpoint.pt'}"])
    before, after = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model_state_dict"]
        for folder in (run, tmp_path)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_embed(run: Path, tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "features.npz"
    main(["embed", f"--config={run / 'config.yaml'}", f"--file={file}", "--part=test"])
    found = np.load(file)
    assert found["features"].shape == (6, 64)
    assert found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["paths"][0] == str(photos / "test/class0/0.png")


def test_embed_names_the_parts_that_there_are(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="part must be one of train, test for folder, got 'gallery'"):
        main(["embed", f"--config={run / 'config.yaml'}", f"--file={tmp_path / 'f.npz'}", "--part=gallery"])


def test_a_run_with_averaged_weights_is_evaluated_by_them(photos: Path, tmp_path: Path) -> None:
    averaging = ["--epochs=1", "--trainer.ema_decay=0.5", "--trainer.lr=0.1"]
    main(["train", "--config=fgvc", *SMALL, *data(photos), *averaging, f"--output={tmp_path}"])
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    average, last = tmp_path / "average.pt", tmp_path / "last.pt"
    save_checkpoint(average, {"model_state_dict": state["ema_state_dict"]})
    save_checkpoint(last, {"model_state_dict": state["model_state_dict"]})

    def features(*weights: str) -> np.ndarray:
        file = tmp_path / "features.npz"
        main(["embed", f"--config={tmp_path / 'config.yaml'}", f"--file={file}", "--part=test", *weights])
        return np.load(file)["features"]

    own = features()
    np.testing.assert_array_equal(own, features(f"--weights={average}"))
    assert not np.array_equal(own, features(f"--weights={last}"))


def test_visualize_one_photo(run: Path, tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "photo.png"
    photo = photos / "test/class0/0.png"
    main(["visualize", f"--config={run / 'config.yaml'}", f"--photos={photo}", f"--file={file}"])
    with Image.open(file) as picture:
        assert picture.format == "PNG"


def test_visualize(run: Path, tmp_path: Path, photos: Path) -> None:
    pair = [str(photos / f"test/class{i}/0.png") for i in (0, 1)]
    file = tmp_path / "sheet.html"
    config = f"--config={run / 'config.yaml'}"
    main(["visualize", config, f"--photos={pair}", f"--distractors={pair[::-1]}", f"--file={file}"])
    assert "data:image/png;base64" in file.read_text()
    assert "class0" in file.read_text()


def test_reid_recipe_trains_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--data.name=orl-reid", "--data.size=[48, 48]", "--data.batch_size=32", "--data.workers=0"]
    arguments = ["--config=reid", *SMALL, *photos, f"--output={tmp_path}", *QUICK]
    main(["train", *arguments, "--epochs=1"])
    main(["evaluate", f"--run={tmp_path}", "--metric=euclidean", "--rerank=true"])
    assert 0 < json.loads((tmp_path / "evaluation.json").read_text())["mAP"] <= 1
    assert "mINP" in capsys.readouterr().out


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    given = {"self", "kwargs", "model", "batches", "pairs", "evaluate", "augment", "num_classes", "task_type"}
    given |= {"img_size", "embed_dim", "num_pwca_blocks", "seed", "description", "cameras", "views"}
    sections = {"model": DualAttentionModel, "data": DataOptions, "trainer": DualAttentionTrainer}
    for section, owner in (sections | {"pairs": PairSampler}).items():
        for name in set(inspect.signature(owner).parameters) - given:
            assert f"--{section}.{name}" in text
    assert "--model.camera_embedding" in text and "--model.view_embedding" in text


@pytest.mark.parametrize("command", ["evaluate", "embed", "visualize", "export", "demo", "tune", "info"])
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in set(inspect.signature(COMMANDS[command]).parameters) - {"selection"}:
        assert (name if command == "export" else f"--{name}") in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--config=fgvc"], "data.name"),
        (["train", "--config=nonsense"], "nonsense"),
        (["train", "--config=fgvc", "--data.name=cub", "--trainer.lr=fast"], "trainer.lr"),
        (["train", "--config=fgvc", "--data.name=cub", "--nonsense=1"], "nonsense"),
        (["train", "--config=fgvc", "--data.name=cub"], "root must be the folder of cub, got None"),
        (["train", "--config=fgvc", "--data.name=birds"], "name must be one of cub, nabirds, cars"),
        (["train", "--config=fgvc", "--data.name=cub", "--data.root=/nowhere"], "images.txt"),
        (
            ["train", "--config=fgvc", "--data.name=cub", "--pairs.hard_ratio=2"],
            "hard_ratio must be in [0, 1], got 2",
        ),
        (["evaluate", "--config=fgvc", "--data.name=orl-fgvc"], "--run must be the folder of a training run"),
        (["evaluate", "--run=nowhere"], "nowhere"),
        (
            ["train", "--config=reid", "--data.name=orl-reid", "--data.batch_size=30"],
            "batch_size must be a multiple of photos=4, got 30",
        ),
        (
            ["train", "--config=fgvc", "--data.name=orl-fgvc", "--data.resize=9"],
            "resize must be at least size, 448, got 9",
        ),
        (["train", "--config=reid", "--data.name=orl-fgvc"], "size must be a square"),
        (["tune"], "--target sm_90"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code)
    assert message.startswith("dca-triton: ")
    assert sentence in message
    assert "\n" not in message


def test_help_imports_no_torch() -> None:
    script = """
import contextlib, io, sys
from dca_triton.cli import main
commands = ("evaluate", "embed", "visualize", "export", "demo", "tune", "info")
for arguments in (["--help"], *([name, "--help"] for name in commands)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main(arguments)
    assert "usage: dca-triton" in out.getvalue()
    assert "torch" not in sys.modules and "timm" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_version() -> None:
    """From a shell."""
    command = [sys.executable, "-m", "dca_triton.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"dca-triton {__version__}\n"


def test_ctrl_c_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dca_triton.cli.parser.run_command", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["info"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "dca-triton: interrupted\n"


def test_a_path_that_is_not_utf8(run: Path, photos: Path, tmp_path: Path) -> None:
    """Such paths work for photos, runs and outputs, and so does the config.yaml that holds one."""
    odd = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(run, odd)
    shutil.copytree(photos, odd / "photos")
    main(["evaluate", f"--run={odd}", f"--data.root={odd / 'photos'}"])
    assert (odd / "evaluation.json").is_file()
    main(["embed", f"--run={odd}", f"--photos={odd / 'photos'}", f"--file={odd / 'a.npz'}"])
    main(["train", *SMALL, *data(odd / "photos"), "--epochs=1", f"--output={odd / 'next'}"])
    main(["evaluate", f"--config={odd / 'next' / 'config.yaml'}"])
    assert (odd / "next" / "evaluation.json").is_file()
