"""Runs that are killed, stopped or continued end like uninterrupted ones."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from programs import output_of
from small_training import (
    Photos,
    Stopped,
    bits,
    continued,
    epochs_of,
    one_block_trainer,
    plain_loader,
    small_model,
)

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.training import training_loader


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return output_of("killed_runs.py", tmp_path_factory.mktemp("killed"), "7")


@pytest.mark.parametrize("kind", ["seeded", "plain"])
def test_killed_runs_end_with_the_bits_of_an_unbroken_one(kind, killed):
    """SIGKILL and SIGTERM at random moments, and what SIGKILL leaves at each call of a save to the disk."""
    report = killed[kind]
    assert all(found["same"] for found in report), report
    kills = {way: sum(r["kills"] for r in report if r["way"] == way) for way in {r["way"] for r in report}}
    assert kills["SIGKILL"] >= 8 and kills["SIGTERM"] >= 3 and kills["inside a save"] >= 7


def test_an_ended_run_is_left_as_it_is(begun):
    before = bits(load_checkpoint(begun / "checkpoint.pt"))
    one_block_trainer().train(3, begun, resume=Path("auto"))  # as the command line passes it
    lines = (begun / "metrics.jsonl").read_bytes()
    assert continued(begun) == before
    assert (begun / "metrics.jsonl").read_bytes() == lines


def test_a_path_to_resume_from(begun, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    trainer = one_block_trainer()
    trainer.train(3, elsewhere, resume=begun / "checkpoint.1.pt")
    assert bits(load_checkpoint(elsewhere / "checkpoint.pt")) == bits(
        load_checkpoint(begun / "checkpoint.pt")
    )
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        one_block_trainer().train(3, elsewhere, resume=elsewhere / "absent.pt")


def test_other_settings_and_other_checkpoints_are_refused(begun):
    with pytest.raises(ValueError, match=r"lr must be 0\.001, got 0\.01; seed must be 0, got 1"):
        one_block_trainer(lr=0.01, seed=1).train(3, begun, resume="auto")
    save_checkpoint(begun / "theirs.pt", {"model_state_dict": small_model().state_dict(), "epoch": 3})
    with pytest.raises(
        ValueError,
        match=r"theirs\.pt must be written by .* without .*history, step, .*load_weights takes the weights",
    ):
        one_block_trainer().train(3, begun, resume=begun / "theirs.pt")


def adam_state(**slots):
    whole = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    return {"state": {0: whole | slots}, "param_groups": []}


CRAFTED = {
    "history of other epochs": (
        {"history": [{"epoch": 2.0}, {"epoch": 1.0}, {"epoch": 3.0}]},
        "history must",
    ),
    "history without epochs": ({"history": [{}, {}, {}]}, "history must hold a line for each"),
    "short history": ({"history": []}, "history must hold a line for each of the epochs 1 to 3"),
    "texts in the history": ({"history": [{"epoch": "1"}] * 3}, "history must be a list of dicts of numbers"),
    "other epoch": ({"epoch": 10**12}, "history must hold a line for each"),
    "too many steps": ({"step": 4, "sums": {"total_loss": torch.tensor(1.0)}}, "step must be at most"),
    "sums of no step": (
        {"sums": {"total_loss": torch.tensor(1.0)}},
        "sums must hold total_loss if and only if",
    ),
    "steps without sums": ({"step": 2}, "sums must hold total_loss if and only if"),
    "too many skipped": ({"skipped": 2}, "skipped must be at most step, 0, got 2"),
    "no generator": (
        {"rng_state": []},
        "rng_state must hold the random generators of each process of the launch, 1, got those of 0",
    ),
    "two generators": (
        {"rng_state": [[torch.get_rng_state()] * 3]},
        r"batches must have 3 random generators as in the checkpoint .*, got 2",
    ),
    "wrong generator": (
        {"rng_state": [[torch.ones(3)] * 2]},
        "rng_state must be a list of lists of uint8 tensors",
    ),
    "best": ({"best": float("nan")}, "best must be a float, got nan"),
    "settings": ({"settings": []}, r"settings must be a dict of plain values, got \[\]"),
    "few settings": ({"settings": {"lr": 1e-3}}, "settings must hold optimizer, weight_decay"),
    "path in the place of weights": (
        {"model_state_dict": "/x.pt"},
        "model_state_dict must be a dict of tensors",
    ),
    "path in the place of averages": (
        {"ema_state_dict": "/x.pt"},
        "ema_state_dict must be a dict of tensors",
    ),
    "tensor as best": ({"best": torch.zeros(2)}, "best must be a float, got a float32 tensor"),
    "tensor as description": ({"description": torch.zeros(1)}, "description must be a dict of plain values"),
    "tensors as settings": ({"settings": {"lr": torch.zeros(2)}}, "settings must be a dict of plain values"),
    "model": ({"model_state_dict": [1]}, r"model_state_dict must be a dict of tensors, got \[1\]"),
    "loss weights": ({"uncertainty_loss_state_dict": {"log_vars": torch.ones(2)}}, "log_vars must be"),
    "optimizer": ({"optimizer_state_dict": {"state": {}}}, "must be a dict with state and param_groups"),
    "optimizer's groups": (
        {"optimizer_state_dict": {"state": {}, "param_groups": [3]}},
        "must hold a dict as state and a list of dicts with params as param_groups",
    ),
    "optimizer's betas": (
        {
            "optimizer_state_dict": {
                "state": {},
                "param_groups": [{"params": [], "betas": "x", "weight_decay": 9.0}],
            }
        },
        r"param_groups\[0\]\.betas must be \(0\.9, 0\.999\), got 'x'; .*weight_decay must be 0\.05, got 9\.0",
    ),
    "optimizer's shapes": (
        {"optimizer_state_dict": adam_state()},
        "in optimizer_state_dict must be a dense floating-point tensor",
    ),
    "optimizer's slots": (
        {"optimizer_state_dict": {"state": {0: {}}, "param_groups": []}},
        "must hold exp_avg",
    ),
    "optimizer's numbers": (
        {"optimizer_state_dict": {"state": {"a": {}, 10**6: {}}, "param_groups": []}},
        "must number parameters from 0, got 'a'.*got 1000000",
    ),
    "model's arguments": (
        {"model_arguments": [1]},
        r"model_arguments must be a dict of plain values or None, got \[1\]",
    ),
    "description": (
        {"description": "text"},
        "description must be a dict of plain values or None, got 'text'",
    ),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_states_end_in_one_sentence(what, crafted_from, tmp_path):
    change, sentence = CRAFTED[what]
    save_checkpoint(tmp_path / "crafted.pt", crafted_from | change)
    with pytest.raises(
        ValueError, match=rf"crafted\.pt cannot be resumed from: .*{sentence}|{sentence}"
    ) as error:
        one_block_trainer().train(4, tmp_path / "run", resume=tmp_path / "crafted.pt")
    assert "\n" not in str(error.value) and "crafted.pt" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def crafted_from(three_epochs):
    return load_checkpoint(three_epochs / "checkpoint.pt")


def test_batches_that_end_before_the_step_resumed_from(tmp_path, sigterm):
    def some(number):
        return (batch for batch in list(plain_loader())[:number])

    class Endless:
        def __init__(self, number):
            self.number = number

        def __iter__(self):
            return some(self.number)

    def augment(images, generator):
        sigterm()
        return images

    with pytest.raises(Stopped):
        one_block_trainer(Endless(3), augment=augment).train(1, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1
    with pytest.raises(ValueError, match="batches must give the 1 steps that are done, got 0"):
        one_block_trainer(Endless(0), augment=augment).train(1, tmp_path, resume="auto")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_with_persistent_workers_resumes_bit_for_bit(workers, tmp_path):
    def run(folder, epochs):
        torch.manual_seed(3)
        options = {"num_workers": workers, "persistent_workers": True}
        return one_block_trainer(plain_loader(**options)).train(epochs, folder, resume="auto")

    run(tmp_path / "truth", 3)
    for epochs in (1, 3):
        run(tmp_path / "run", epochs)
    truth, ours = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("truth", "run"))
    assert bits(truth) == bits(ours)


@pytest.mark.parametrize("ending", ["Ctrl-C", "a loss"])
def test_a_trainer_that_has_trained_goes_on_only_by_a_checkpoint(ending, tmp_path):
    """As in a notebook. A step that fails leaves gradients, which must not reach the first step afterward."""
    calls, stops = 0, False

    def augment(images, generator):
        nonlocal calls
        calls += 1
        if stops and calls == 5:  # the second step of the second epoch
            if ending == "Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
            elif ending == "a loss":
                images = images * float("nan")
        return images

    def trainer():
        torch.manual_seed(3)
        return one_block_trainer(
            plain_loader(), augment=augment, evaluate=lambda: {"top1": 0.5}, evaluate_every=1, ema_decay=0.9
        )

    trainer().train(3, tmp_path / "truth")
    truth = bits(load_checkpoint(tmp_path / "truth" / "checkpoint.pt"))
    calls, stops = 0, True
    run, again = tmp_path / "run", trainer()
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        again.train(3, run)
    stops = False
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(
        ValueError, match="resume must be 'auto' or a path for a trainer that has trained, got None"
    ):
        again.train(3, run)
    with pytest.raises(
        ValueError, match="save_dir must hold a checkpoint for a trainer that has trained, got"
    ):
        again.train(3, tmp_path / "new", resume="auto")
    assert {path: path.read_bytes() for path in run.iterdir()} == before and not (tmp_path / "new").exists()
    again.train(3, run, resume="auto")
    assert bits(load_checkpoint(run / "checkpoint.pt")) == truth


def test_a_trainer_whose_first_step_failed_begins_anew(tmp_path):
    """Neither the gradients nor the random state of the failed attempt reach the run."""
    fails = False

    def trainer():
        torch.manual_seed(3)
        return one_block_trainer(plain_loader(), augment=lambda x, _: x * float("nan") if fails else x)

    truth, again = trainer(), trainer()
    fails = True
    with pytest.raises(RuntimeError, match="loss is"):
        again.train(1, tmp_path / "again")
    fails = False
    states = []
    for one, name in ((truth, "truth"), (again, "again")):
        torch.manual_seed(4)
        one.train(1, tmp_path / name)
        states.append(bits(load_checkpoint(tmp_path / name / "checkpoint.pt")))
    assert states[0] == states[1]


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
        one_block_trainer(batches).train(2, tmp_path / str(workers))
        orders.append(batches.seen)
        assert batches.seen[0][0] != batches.seen[3][0]  # another order in the second epoch
    assert orders[0] == orders[1]
    weights = [bits(load_checkpoint(tmp_path / w / "checkpoint.pt")["model_state_dict"]) for w in ("0", "2")]
    assert weights[0] == weights[1]


def test_an_epoch_without_scores_is_evaluated_on_a_resume(tmp_path):
    """At the epochs done: after another length, and after a misspelt best_by."""
    calls = []

    def evaluate():
        calls.append(1)
        return {"top1": 0.5 + len(calls)}

    run = tmp_path / "run"
    one_block_trainer(evaluate=evaluate).train(3, run)
    newest = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="best_by must be one of the scores top1, got 'top2'"):
        one_block_trainer(evaluate=evaluate, best_by="top2").train(2, run, resume=run / "checkpoint.1.pt")
    assert (run / "checkpoint.pt").read_bytes() == newest and epochs_of(run) == [1, 2, 3]
    history = one_block_trainer(evaluate=evaluate, best_by="top1").train(
        2, run, resume=run / "checkpoint.1.pt"
    )
    assert [line.get("top1") for line in history] == [None, 3.5]
    assert load_checkpoint(run / "checkpoint.pt")["history"] == history
    assert load_checkpoint(run / "best.pt")["epoch"] == 2
    one_block_trainer(evaluate=evaluate, best_by="top1").train(2, run, resume="auto")
    assert len(calls) == 3, "an epoch with scores is not evaluated again"

    wrong = tmp_path / "wrong"
    with pytest.raises(ValueError, match="the run is saved and can be resumed with another"):
        one_block_trainer(evaluate=evaluate, best_by="top2").train(1, wrong)
    history = one_block_trainer(evaluate=evaluate, best_by="top1").train(1, wrong, resume="auto")
    assert history[0]["top1"] == 5.5 and load_checkpoint(wrong / "best.pt")["best"] == 5.5
    assert json.loads((wrong / "metrics.jsonl").read_text()) == history[0]
