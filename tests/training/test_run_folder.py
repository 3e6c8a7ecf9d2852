"""The files of a run: damaged, of an earlier run, on a full disk, or not to be written."""

import contextlib
import errno
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from small_training import Stopped, bits, continued, epochs_of, one_block_trainer

from dca_triton.checkpoint import load_checkpoint
from dca_triton.run_folder import RunFolder


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "pickled"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(begun, damage):
    newest = begun / "checkpoint.pt"
    whole = newest.read_bytes()
    truth = bits(load_checkpoint(newest))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    newest.write_bytes(
        {"truncated": whole[:-9], "flipped": bytes(flipped), "emptied": b"", "pickled": b"cos\nsystem\n."}[
            damage
        ]
    )
    with pytest.warns(UserWarning, match=r"checkpoint\.pt .*; .*checkpoint\.1\.pt is used instead"):
        assert continued(begun) == truth
    assert epochs_of(begun) == [1, 2, 3]


def test_all_damaged_is_an_error(begun):
    for path in begun.glob("checkpoint*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"must hold a checkpoint to resume from, .*checkpoint\.pt.*checkpoint\.1\.pt"
    ):
        one_block_trainer().train(3, begun, resume="auto")


def test_metrics_are_cut_back_to_the_epoch_resumed_from(begun):
    (begun / "checkpoint.pt").unlink()
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "half a li')
    continued(begun, epochs=4)
    assert epochs_of(begun) == [1, 2, 3, 4]


def test_starting_anew_over_an_earlier_run_is_said(begun):
    with pytest.warns(UserWarning, match="holds an earlier run.*resume='auto'"):
        one_block_trainer().train(1, begun)
    assert len((begun / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_folder_in_the_place_of_the_newest_checkpoint(begun):
    truth = bits(load_checkpoint(begun / "checkpoint.pt"))
    (begun / "checkpoint.pt").unlink()
    (begun / "checkpoint.pt").mkdir()
    (begun / "checkpoint.pt" / "theirs").write_text("x")
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt is not a file.*; .*checkpoint\.1\.pt is used instead"
    ):
        assert continued(begun) == truth
    assert (begun / "checkpoint.pt.folder" / "theirs").read_text() == "x"


def test_a_new_run_leaves_nothing_of_an_earlier_one(tmp_path):
    one_block_trainer(evaluate=lambda: {"top1": 1.0}, keep_last=4).train(3, tmp_path)
    assert (tmp_path / "best.pt").exists()
    with pytest.warns(UserWarning, match="holds an earlier run"):
        one_block_trainer(seed=1).train(1, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.1.pt",
        "checkpoint.pt",
        "metrics.jsonl",
    ]
    assert [load_checkpoint(path)["settings"]["seed"] for path in RunFolder(tmp_path).paths()] == [1, 1]


@pytest.fixture(scope="module")
def seed_1(tmp_path_factory):
    """The bits of a run of one epoch with another seed."""
    folder = tmp_path_factory.mktemp("seed 1")
    one_block_trainer(seed=1).train(1, folder)
    return bits(load_checkpoint(folder / "checkpoint.pt"))


@pytest.mark.parametrize("at", [1, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14])
def test_a_new_run_that_is_killed_as_it_begins_is_the_one_that_goes_on(at, begun, seed_1, monkeypatch):
    """At each call that touches the disk: then the folder is the old run's or the new one's, never both."""
    (begun / "best.pt").write_bytes((begun / "checkpoint.pt").read_bytes())
    calls = 0

    def deadly(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Stopped
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="holds an earlier run"):
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        with contextlib.suppress(Stopped):
            one_block_trainer(seed=1).train(1, begun)
    try:
        assert continued(begun, 1, seed=1) == seed_1
        assert not (begun / "best.pt").exists() and len(epochs_of(begun)) == 1
    except ValueError as error:
        assert "seed must be 0, got 1" in str(error) and at <= 6, "the new run had not begun"
        assert epochs_of(begun) == [1, 2, 3] and (begun / "best.pt").exists()


def test_going_back_to_a_checkpoint_drops_those_after_it_when_its_first_step_is_done(begun):
    one_block_trainer().train(3, begun, resume=begun / "checkpoint.1.pt")
    assert epochs_of(begun) == [1, 2, 3]
    steps = 0

    def augment(images, generator):
        nonlocal steps
        steps += 1
        if steps == stops_at:
            raise Stopped
        return images

    before = {path: path.read_bytes() for path in begun.iterdir()}
    for stops_at in (1, 2):
        steps, trainer = 0, one_block_trainer()
        trainer.objective.augment = augment
        with pytest.raises(Stopped):
            trainer.train(4, begun, resume=begun / "checkpoint.1.pt")
        if stops_at == 1:
            assert {path: path.read_bytes() for path in begun.iterdir()} == before
    assert [load_checkpoint(path)["epoch"] for path in RunFolder(begun).paths()] == [2]
    assert epochs_of(begun) == [1, 2]


def test_a_run_that_goes_on_in_another_runs_folder_has_it_alone(begun, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    one_block_trainer(seed=1, evaluate=lambda: {"top1": 1.0}, keep_last=3).train(3, other)
    with pytest.warns(UserWarning, match="holds an earlier run"):
        one_block_trainer().train(3, other, resume=begun / "checkpoint.1.pt")
    assert [load_checkpoint(path)["settings"]["seed"] for path in RunFolder(other).paths()] == [0, 0]
    assert not (other / "best.pt").exists()


def test_a_checkpoint_that_has_not_got_its_name_is_the_newest(begun):
    truth = bits(load_checkpoint(begun / "checkpoint.pt"))
    os.replace(begun / "checkpoint.pt", begun / "checkpoint.new.pt")
    assert continued(begun) == truth
    assert [path.name for path in RunFolder(begun).paths()] == ["checkpoint.pt", "checkpoint.1.pt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_epochs": 0}, r"num_epochs must be an integer >= 1 and < 2\*\*63, got 0"),
        ({"num_epochs": 2.5}, r"num_epochs must be an integer >= 1 and < 2\*\*63, got 2\.5"),
        ({"save_dir": 3}, "save_dir must be a path, got 3"),
        ({"resume": True}, "resume must be a path or None, got True"),
        ({"num_epochs": 2, "resume": "auto"}, "num_epochs must be at least 3, the epochs begun, got 2"),
        ({"resume": "absent.pt"}, r"absent\.pt does not exist"),
    ],
)
def test_nothing_is_written_before_the_call_is_sound(begun, arguments, sentence, tmp_path_factory):
    before = {path: path.read_bytes() for path in begun.iterdir()}
    for folder in (begun, tmp_path_factory.mktemp("x") / "new"):
        if folder != begun and arguments.get("resume") == "auto":
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            one_block_trainer().train(**({"num_epochs": 4, "save_dir": folder} | arguments))
        assert folder == begun or not folder.exists()
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


def test_a_folder_that_cannot_be_written(begun, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        one_block_trainer().train(1, tmp_path / "file")
    (begun / "metrics.jsonl").unlink()
    (begun / "metrics.jsonl").mkdir()
    names = sorted(begun.iterdir())
    with pytest.raises(OSError, match=r"metrics\.jsonl must be a file, got a folder"):
        one_block_trainer().train(4, begun, resume="auto")
    assert sorted(begun.iterdir()) == names


def test_a_full_disk_leaves_the_older_checkpoints_whole(tmp_path, monkeypatch):
    one_block_trainer().train(1, tmp_path)
    truth = bits(load_checkpoint(tmp_path / "checkpoint.pt"))

    def full(state, file):
        file.write(b"as much as fits")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left on device"):
            one_block_trainer().train(2, tmp_path, resume="auto")
    assert bits(load_checkpoint(tmp_path / "checkpoint.pt")) == truth
    continued(tmp_path, 2)


def test_a_full_disk_shows_before_the_first_epoch(tmp_path, monkeypatch):
    trainer = one_block_trainer()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="cannot be written"):
        trainer.train(1, tmp_path)
    assert trainer.run.progress.step == 0


@pytest.mark.parametrize("lost", ["nothing", "best.pt is damaged", "best.pt is of an earlier run"])
def test_going_back_does_not_replace_the_best_by_a_worse_one(tmp_path, lost):
    def train(scores, resume=None):
        given = iter(scores)
        options = {"evaluate": lambda: {"top1": next(given)}, "evaluate_every": 1, "keep_last": 3}
        one_block_trainer(**options).train(3, tmp_path, resume=resume)

    train([0.1, 0.9, 0.3])
    start = tmp_path / "checkpoint.2.pt"
    if lost == "best.pt is damaged":
        (tmp_path / "best.pt").write_bytes(b"damaged")
    elif lost == "best.pt is of an earlier run":  # killed between two removals
        start = start.rename(tmp_path / "checkpoint.first.pt")
    train([0.5, 0.6], resume=start)
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best["epoch"], best["best"]) == ((2, 0.9) if lost == "nothing" else (3, 0.6))


def test_keep_last_and_best(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    trainer = one_block_trainer(keep_last=3, evaluate=lambda: {"top1": next(scores)}, evaluate_every=1)
    trainer.train(4, tmp_path)
    epochs = {path.name: load_checkpoint(path)["epoch"] for path in tmp_path.glob("*.pt")}
    assert epochs == {"checkpoint.pt": 4, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2, "best.pt": 2}
    assert [path.name for path in RunFolder(tmp_path).paths()] == [
        "checkpoint.pt",
        "checkpoint.1.pt",
        "checkpoint.2.pt",
    ]


def test_save_every(tmp_path):
    one_block_trainer(keep_last=9, save_every=2).train(5, tmp_path)
    epochs = [load_checkpoint(path)["epoch"] for path in RunFolder(tmp_path).paths()]
    assert epochs == [5, 4, 2, 0]


FAILING = {
    "first step": ({"augment": lambda images, generator: 1 / 0}, {}, ZeroDivisionError),
    "photo": (
        {"batches": [{"image": torch.zeros(2, 5, 16, 16), "label": torch.tensor([0, 1])}]},
        {},
        Exception,
    ),
    "loss": (
        {"batches": [{"image": torch.full((2, 3, 16, 16), float("nan")), "label": [0, 1]}]},
        {},
        RuntimeError,
    ),
    "more files": ({}, {"began": lambda: 1 / 0}, ZeroDivisionError),
    "warm-up": ({"warmup_epochs": 1}, {}, ValueError),
    "tensorboard": ({"tensorboard": True}, {}, NotADirectoryError),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of one epoch with scores, and what was written about it."""
    folder = tmp_path_factory.mktemp("finished")
    one_block_trainer(evaluate=lambda: {"top1": 1.0}).train(1, folder)
    for name in ("evaluation.json", "config.yaml"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("why", FAILING)
def test_a_new_run_that_cannot_work_leaves_the_earlier_one_whole(why, finished, tmp_path):
    options, arguments, error = FAILING[why]
    folder = shutil.copytree(finished, tmp_path / "run")
    if why == "tensorboard":
        (folder / "tensorboard").write_text("a file")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*holds an earlier run")
        with pytest.raises(error):
            one_block_trainer(**options).train(1, folder, **arguments)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        if why != "tensorboard":
            one_block_trainer().train(1, folder)
            assert {path.name for path in folder.iterdir()} == {
                "checkpoint.pt",
                "checkpoint.1.pt",
                "metrics.jsonl",
                "config.yaml",
            }
