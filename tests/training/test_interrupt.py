"""Ctrl-C and SIGTERM, in the process that trains and in its workers."""

import os
import signal

import pytest
import torch
from small_training import Stopped, bits, epochs_of, one_block_trainer, plain_loader

from dca_triton.checkpoint import load_checkpoint
from dca_triton.training.interrupt import delayed_interrupts


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_saves_and_a_second_one_ends_at_once(presses, tmp_path, capfd):
    seen = []

    def augment(images, generator):
        seen.append(1)
        if len(seen) == 2:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return images

    with pytest.raises(KeyboardInterrupt):
        one_block_trainer(augment=augment).train(1, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == (2 if presses == 1 else 0)
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err


def test_ignored_signals_stay_ignored(tmp_path):
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        one_block_trainer(evaluate=lambda: os.kill(os.getpid(), signal.SIGINT) or {"x": 1}).train(1, tmp_path)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("moment", ["first step", "last step", "evaluation"])
def test_sigterm_saves_and_then_takes_its_usual_effect(tmp_path, sigterm, moment):
    steps = {"first step": 0, "last step": 2}
    calls = 0

    def augment(images, generator):
        nonlocal calls
        if interrupts and calls == steps.get(moment):
            sigterm()
        calls += 1
        return images + torch.rand(images.shape, generator=generator)

    def evaluate():
        if interrupts and moment == "evaluation":
            sigterm()
        return {"top1": torch.rand(()).item()}

    def run(folder):
        torch.manual_seed(3)
        trainer = one_block_trainer(plain_loader(), augment=augment, evaluate=evaluate, evaluate_every=1)
        trainer.train(2, folder, resume="auto")
        return bits(load_checkpoint(folder / "checkpoint.pt"))

    interrupts = False
    truth = run(tmp_path / "truth")
    interrupts, calls = True, 0
    with pytest.raises(Stopped):
        run(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == {
        "first step": (0, 1),
        "last step": (0, 3),
        "evaluation": (1, 0),
    }[moment]
    interrupts = False
    assert run(tmp_path / "run") == truth
    assert epochs_of(tmp_path / "run") == [1, 2]


def test_a_worker_process_leaves_ctrl_c_to_its_parent(capfd):
    """And SIGTERM takes its usual effect there."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with delayed_interrupts() as stop_requested:
            statuses = []
            for by in (signal.SIGINT, signal.SIGTERM):
                if not (number := os.fork()):
                    os.kill(os.getpid(), by)
                    os._exit(7 if stop_requested.signal == 0 else 8)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
        assert statuses == [7, -signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "press Ctrl-C" not in capfd.readouterr().err
