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
from small_training import Photos, bits, plain_loader, small_trainer

from dca_triton.checkpoint import load_checkpoint
from dca_triton.training import training_loader

EPOCHS = 3


def train(kind: str, folder: Path) -> None:
    torch.manual_seed(11)
    seeded = kind == "seeded"
    trainer = small_trainer(
        training_loader(Photos(), 8, workers=0) if seeded else plain_loader(),
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


def killed_at_random(kind: str, folder: Path, by: int, span: float, dice: random.Random) -> int:
    """Signal the run within `span` seconds, again and again until it ends by itself; returns how often."""
    for kills in range(100):
        number = child(train, kind, folder)
        time.sleep(dice.uniform(0, span))
        os.kill(number, by)
        status = ended(number)
        if status == 0:
            return kills
        assert status == -by, f"the run ended with {status}"
    raise AssertionError("100 runs did not get to the end")


def killed_at_call(kind: str, folder: Path, at: int) -> None:
    """Train, but kill this process at the `at`-th call that touches a checkpoint, torch.save's half done."""
    calls = 0

    def deadly(function: Callable, half: bool = False) -> Callable:
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == at:
                if half:
                    arguments[1].write(b"half a checkpoint")
                    arguments[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
    torch.save = deadly(torch.save, half=True)
    train(kind, folder)


def main(scratch: Path, kind: str, seed: int) -> None:
    dice = random.Random(seed)
    truth, begun = scratch / "truth", scratch / "begun"
    started = time.monotonic()
    assert run(train, kind, truth) == 0
    span = 1.5 * (time.monotonic() - started)
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
            found = killed_at_random(kind, folder, by, span, dice)
            check(by.name, folder, found)
            kills, rounds = kills + found, rounds + 1
    for at in range(1, 100):
        folder = scratch / f"call {at}"
        shutil.copytree(begun, folder)
        status = run(killed_at_call, kind, folder, at)
        if status == 0:
            break
        assert status == -signal.SIGKILL and run(train, kind, folder) == 0
        check("inside a save", folder, 1)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
