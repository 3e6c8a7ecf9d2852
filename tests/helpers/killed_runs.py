"""Run as a program by test_resume: trains in child processes that are killed, prints the results as JSON.

Children are forked, so that PyTorch is imported once.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from small_training import Photos, bits, plain_loader, small_model, small_trainer

from dca_triton.checkpoint import load_checkpoint
from dca_triton.training import training_loader

EPOCHS = 3


def train(kind: str, folder: Path) -> None:
    torch.manual_seed(11)
    seeded = kind == "seeded"
    trainer = small_trainer(
        training_loader(Photos(), 8, workers=0) if seeded else plain_loader(),
        small_model(depth=1),
        warmup_epochs=1,
        clip_grad=1.0,
        accumulate=2 if seeded else 1,
        ema_decay=0.9 if seeded else None,
        evaluate=lambda: {
            "top1": torch.rand(()).item()
        },  # draws from the generator that the loader draws from
        evaluate_every=1,
    )
    trainer.train(EPOCHS, folder, resume="auto")


def child(work: Callable, *arguments) -> int:
    """The number of a process that runs `work`."""
    if number := os.fork():
        return number
    status = 1
    try:
        warnings.simplefilter("error")
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def run(work: Callable, *arguments) -> int:
    return ended(child(work, *arguments))


def killed_at_random(kind: str, folder: Path, by: int, most: int, span: float, dice: random.Random) -> int:
    """Signal the run within `span` seconds, `most` times or until it ends by itself; returns how often."""
    for kills in range(most):
        number = child(train, kind, folder)
        time.sleep(dice.uniform(0, span))
        os.kill(number, by)
        status = ended(number)
        if status == 0:
            return kills
        assert status == -by, f"the run ended with {status}"
    assert run(train, kind, folder) == 0
    return most


def copied_at_each_call(kind: str, folder: Path, copies: Path) -> None:
    """Train, but copy the folder at each call that touches a checkpoint, torch.save's half done.

    SIGKILL lets the process do nothing more, so it would leave what is copied.
    """
    calls = 0

    def watched(function: Callable, half: bool = False) -> Callable:
        def call(*arguments):
            nonlocal calls
            calls += 1
            if half:
                arguments[1].write(b"half a checkpoint")
                arguments[1].flush()
            shutil.copytree(folder, copies / f"call {calls}")
            if half:
                arguments[1].seek(0)
                arguments[1].truncate()
            return function(*arguments)

        return call

    os.fsync, os.replace = watched(os.fsync), watched(os.replace)
    torch.save = watched(torch.save, half=True)
    train(kind, folder)


def report_of(kind: str, scratch: Path, seed: int) -> list[dict]:
    dice = random.Random(seed)
    truth, begun, copies = (scratch / name for name in ("truth", "begun", "copies"))
    started = time.monotonic()
    assert run(train, kind, truth) == 0
    span = time.monotonic() - started
    shutil.copytree(truth, begun)
    os.replace(begun / "checkpoint.1.pt", begun / "checkpoint.pt")  # all but the last epoch
    report = []

    def check(way: str, folder: Path, kills: int) -> None:
        """A continued run must have left the unbroken run's weights, optimizer, averages and metrics."""
        same = bits(load_checkpoint(folder / "checkpoint.pt")) == bits(
            load_checkpoint(truth / "checkpoint.pt")
        )
        lines = [(where / "metrics.jsonl").read_text() for where in (folder, truth)]
        report.append({"way": way, "kills": kills, "same": same and lines[0] == lines[1]})

    for by, least in ((signal.SIGKILL, 8), (signal.SIGTERM, 3)):
        kills = rounds = 0
        while kills < least:
            folder = scratch / f"{by.name} {rounds}"
            found = killed_at_random(kind, folder, by, least - kills, span, dice)
            check(by.name, folder, found)
            kills, rounds = kills + found, rounds + 1
    assert run(copied_at_each_call, kind, begun, copies) == 0
    resumed = []
    for folder in sorted(copies.iterdir()):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        if files not in resumed:  # an fsync leaves the folder as it is
            resumed.append(files)
            assert run(train, kind, folder) == 0
            check("inside a save", folder, 1)
    return report


if __name__ == "__main__":
    scratch, seed = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({kind: report_of(kind, scratch / kind, seed) for kind in ("seeded", "plain")}))
