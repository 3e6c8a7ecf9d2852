"""Runs that are killed, stopped or damaged go on as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import Photos, bits, plain_loader, small_model, small_trainer

from dca_triton.batches import training_loader
from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.run_folder import RunFolder


@pytest.mark.parametrize("kind", ["seeded", "plain"])
def test_killed_runs_end_with_the_bits_of_an_unbroken_one(kind, tmp_path):
    """SIGKILL and SIGTERM at random moments, and SIGKILL at each call with which a save touches the disk."""
    program = Path(__file__).parent / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(tmp_path), kind, "7"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(found["same"] for found in report), report
    kills = {way: sum(r["kills"] for r in report if r["way"] == way) for way in {r["way"] for r in report}}
    assert kills["SIGKILL"] >= 8 and kills["SIGTERM"] >= 3 and kills["inside a save"] >= 7


def epochs_of(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def continued(folder: Path, epochs: int = 3, **options) -> list[bytes]:
    small_trainer(**options).train(epochs, folder, resume="auto")
    return bits(load_checkpoint(folder / "checkpoint.pt"))


@pytest.fixture
def begun(tmp_path):
    """A finished run of three epochs."""
    small_trainer().train(3, tmp_path)
    return tmp_path


def test_an_ended_run_is_left_as_it_is(begun):
    before = bits(load_checkpoint(begun / "checkpoint.pt"))
    small_trainer().train(3, begun, resume=Path("auto"))  # what a command line makes of the word
    lines = (begun / "metrics.jsonl").read_bytes()
    assert continued(begun) == before
    assert (begun / "metrics.jsonl").read_bytes() == lines


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
        ValueError, match=r"no checkpoint to resume from: .*checkpoint\.pt.*checkpoint\.1\.pt"
    ):
        small_trainer().train(3, begun, resume="auto")


def test_metrics_are_cut_back_to_the_epoch_resumed_from(begun):
    (begun / "checkpoint.pt").unlink()
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "half a li')
    continued(begun, epochs=4)
    assert epochs_of(begun) == [1, 2, 3, 4]


def test_a_path_to_resume_from(begun, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    trainer = small_trainer()
    trainer.train(3, elsewhere, resume=begun / "checkpoint.1.pt")
    assert bits(load_checkpoint(elsewhere / "checkpoint.pt")) == bits(
        load_checkpoint(begun / "checkpoint.pt")
    )
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        small_trainer().train(3, elsewhere, resume=elsewhere / "absent.pt")


def test_other_settings_and_other_checkpoints_are_refused(begun):
    with pytest.raises(ValueError, match=r"lr must be 0\.001, got 0\.01; seed must be 0, got 1"):
        small_trainer(lr=0.01, seed=1).train(3, begun, resume="auto")
    save_checkpoint(begun / "theirs.pt", {"model_state_dict": small_model().state_dict(), "epoch": 3})
    with pytest.raises(
        ValueError,
        match=r"theirs\.pt must be written by .* without .*history, step, .*load_weights takes the weights",
    ):
        small_trainer().train(3, begun, resume=begun / "theirs.pt")


def test_starting_anew_over_an_earlier_run_is_said(begun):
    with pytest.warns(UserWarning, match="holds an earlier run.*resume='auto'"):
        small_trainer().train(1, begun)
    assert len((begun / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_full_disk_leaves_the_older_checkpoints_whole(tmp_path, monkeypatch):
    small_trainer().train(1, tmp_path)
    truth = bits(load_checkpoint(tmp_path / "checkpoint.pt"))

    def full(state, file):
        file.write(b"as much as fits")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left on device"):
            small_trainer().train(2, tmp_path, resume="auto")
    assert bits(load_checkpoint(tmp_path / "checkpoint.pt")) == truth
    continued(tmp_path, 2)


def test_a_full_disk_shows_before_the_first_epoch(tmp_path, monkeypatch):
    trainer = small_trainer()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="cannot be written"):
        trainer.train(1, tmp_path)
    assert trainer.run.progress.step == 0


def test_keep_last_and_best(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    trainer = small_trainer(keep_last=3, evaluate=lambda: {"top1": next(scores)}, evaluate_every=1)
    trainer.train(4, tmp_path)
    epochs = {path.name: load_checkpoint(path)["epoch"] for path in tmp_path.glob("*.pt")}
    assert epochs == {"checkpoint.pt": 4, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2, "best.pt": 2}
    assert [path.name for path in RunFolder(tmp_path).paths()] == [
        "checkpoint.pt",
        "checkpoint.1.pt",
        "checkpoint.2.pt",
    ]


def test_save_every(tmp_path):
    small_trainer(keep_last=9, save_every=2).train(5, tmp_path)
    epochs = [load_checkpoint(path)["epoch"] for path in RunFolder(tmp_path).paths()]
    assert epochs == [5, 4, 2, 0]


class Stopped(Exception):
    pass


@pytest.fixture
def sigterm():
    """Sends this process SIGTERM, whose handler raises `Stopped`."""

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("moment", ["first step", "last step", "evaluation"])
def test_sigterm_saves_and_then_takes_its_usual_effect(tmp_path, sigterm, moment):
    steps = {"first step": 0, "last step": 2}
    calls = 0

    def augment(images, generator):
        nonlocal calls
        if told and calls == steps.get(moment):
            sigterm()
        calls += 1
        return images + torch.rand(images.shape, generator=generator)

    def evaluate():
        if told and moment == "evaluation":
            sigterm()
        return {"top1": torch.rand(()).item()}

    def run(folder):
        torch.manual_seed(3)
        trainer = small_trainer(plain_loader(), augment=augment, evaluate=evaluate, evaluate_every=1)
        trainer.train(2, folder, resume="auto")
        return bits(load_checkpoint(folder / "checkpoint.pt"))

    told = False
    truth = run(tmp_path / "truth")
    told, calls = True, 0
    with pytest.raises(Stopped):
        run(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == {
        "first step": (0, 1),
        "last step": (0, 3),
        "evaluation": (1, 0),
    }[moment]
    told = False
    assert run(tmp_path / "run") == truth
    assert epochs_of(tmp_path / "run") == [1, 2]


def test_an_epoch_continues_at_its_step(tmp_path):
    """With 0 or 2 workers: the photos of a resumed epoch are those that the unbroken one had left."""

    class Seen:
        def __init__(self, loader):
            self.loader, self.seen = loader, []
            self.batch_sampler, self.dataset = loader.batch_sampler, loader.dataset

        def __iter__(self):
            for batch in self.loader:
                self.seen.append((batch["index"].tolist(), float(batch["image"].sum())))
                yield batch

    orders = []
    for workers in (0, 2):
        batches = Seen(training_loader(Photos(), 8, workers=workers))
        small_trainer(batches).train(2, tmp_path / str(workers))
        orders.append(batches.seen)
        assert batches.seen[0][0] != batches.seen[3][0]  # another order in the second epoch
    assert orders[0] == orders[1]
    weights = [bits(load_checkpoint(tmp_path / w / "checkpoint.pt")["model_state_dict"]) for w in ("0", "2")]
    assert weights[0] == weights[1]
