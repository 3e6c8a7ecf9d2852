"""Runs that are killed, stopped or damaged end like uninterrupted ones."""

import contextlib
import errno
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from programs import output_of
from small_training import Photos, bits, plain_loader, small_model, small_trainer

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.run_folder import RunFolder
from dca_triton.training import DualAttentionTrainer, training_loader
from dca_triton.training.interrupt import delayed_interrupts


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


def one_block_trainer(batches=None, **options) -> DualAttentionTrainer:
    """Resuming is the same for any number of blocks."""
    return small_trainer(batches, small_model(depth=1), **options)


class Stopped(Exception):
    pass


def epochs_of(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def continued(folder: Path, epochs: int = 3, **options) -> list[bytes]:
    one_block_trainer(**options).train(epochs, folder, resume="auto")
    return bits(load_checkpoint(folder / "checkpoint.pt"))


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three epochs")
    one_block_trainer().train(3, folder)
    return folder


@pytest.fixture
def begun(three_epochs, tmp_path):
    """A finished run of three epochs."""
    return shutil.copytree(three_epochs, tmp_path, dirs_exist_ok=True)


def test_an_ended_run_is_left_as_it_is(begun):
    before = bits(load_checkpoint(begun / "checkpoint.pt"))
    one_block_trainer().train(3, begun, resume=Path("auto"))  # as the command line passes it
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
        ValueError, match=r"must hold a checkpoint to resume from, .*checkpoint\.pt.*checkpoint\.1\.pt"
    ):
        one_block_trainer().train(3, begun, resume="auto")


def test_metrics_are_cut_back_to_the_epoch_resumed_from(begun):
    (begun / "checkpoint.pt").unlink()
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "half a li')
    continued(begun, epochs=4)
    assert epochs_of(begun) == [1, 2, 3, 4]


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


@pytest.fixture
def sigterm():
    """Sends this process SIGTERM, whose handler raises `Stopped`."""

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


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
