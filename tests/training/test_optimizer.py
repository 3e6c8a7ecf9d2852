"""Optimizers, learning rates and what decides a step, against PyTorch's optimizers and the formulas."""

import json
import math
from typing import Any

import pytest
import torch
from small_training import Photos, bits, plain_loader, small_trainer
from torch import nn
from torch.nn import functional as F

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.training import training_loader
from dca_triton.training.optimizer import cosine_schedule, group_lr, images_of_step, make_optimizer
from dca_triton.training.resume import ADDED_SETTINGS

TORCH = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda *a, **k: torch.optim.SGD(*a, momentum=0.9, **k),
}


def trained(folder, epochs=2, **options) -> list[bytes]:
    trainer = small_trainer(**options)
    trainer.train(epochs, folder)
    return bits([trainer.model.state_dict(), trainer.weighting.state_dict()])


@pytest.mark.parametrize("name", TORCH)
def test_defaults_are_pytorchs_optimizer_bit_for_bit(name, tmp_path):
    """One group and one cosine, written out; a control with another rate differs."""
    truth = small_trainer(optimizer=name)
    log_vars = {"params": [truth.weighting.log_vars], "weight_decay": 0.0}
    options = {"lr": 1e-3, "weight_decay": 0.05}
    steps = TORCH[name]([{"params": list(truth.model.parameters())}, log_vars], **options)
    batches = truth.run.batches
    for epoch in range(2):
        truth.model.train()
        batches.sampler.set_epoch(epoch)
        batches.dataset.set_epoch(epoch)
        for group in steps.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        for step, batch in enumerate(batches):
            truth.objective.backward([batch], len(batch["label"]), epoch, step)
            steps.step()
            steps.zero_grad()
    by_hand = bits([truth.model.state_dict(), truth.weighting.state_dict()])
    assert trained(tmp_path / "ours", optimizer=name) == by_hand
    assert trained(tmp_path / "control", optimizer=name, min_lr=1e-5) != by_hand


def rates(epochs: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = cosine_schedule(optimizer, epochs, **{"warmup_epochs": 0, "lr": 1.0, "min_lr": 0.0} | options)
    found = []
    for epoch in range(epochs):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(("epochs", "warmup", "least"), [(1, 0, 0.0), (8, 0, 0.0), (9, 3, 0.0), (9, 5, 0.25)])
def test_the_schedule_is_a_warm_up_and_a_cosine(epochs, warmup, least):
    for epoch, rate in enumerate(rates(epochs, warmup_epochs=warmup, min_lr=least)):
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        truth = (epoch + 1) / (warmup + 1) if epoch < warmup else least + (1 - least) * cosine
        assert rate == pytest.approx(truth)


def test_one_epoch_logs_no_warning(caplog):
    rates(1)
    assert not caplog.records


def test_metrics_hold_the_rates_and_groups_follow_them(tmp_path):
    options = {"layer_decay": 0.5, "bias_lr_scale": 2.0, "weight_decay_exclude_1d": True}
    trainer = small_trainer(loss_weights_lr=0.1, min_lr=1e-4, **options)
    history = trainer.train(3, tmp_path)
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3)]
    truth = [1e-4 + 9e-4 * part for part in cosine]
    assert [line["lr"] for line in history] == pytest.approx(truth)
    assert [line["loss_weights_lr"] for line in history] == pytest.approx([100 * rate for rate in truth])
    *groups, weights = trainer.run.optimizer.param_groups
    assert weights["params"] == [trainer.weighting.log_vars] and weights["weight_decay"] == 0
    assert [group_lr(group) for group in groups] == pytest.approx([truth[-1]] * len(groups))
    assert {group["lr_scale"] for group in groups} == {a * b for a in (1, 0.5, 0.25, 0.125) for b in (1, 2)}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history


def test_loss_weights_learn_at_their_own_rate(tmp_path):
    moved = {}
    for rate in (None, 1e-3, 0.5):
        trainer = small_trainer(loss_weights_lr=rate)
        history = trainer.train(1, tmp_path / str(rate))
        moved[rate] = trainer.weighting.log_vars.abs().max().item()
        assert ("loss_weights_lr" in history[0]) == (rate is not None)
    assert moved[None] == pytest.approx(moved[1e-3], rel=1e-4) and moved[0.5] > 50 * moved[None]


def test_scores_are_missed_where_only_rates_are_written(tmp_path):
    small_trainer(loss_weights_lr=0.1).train(1, tmp_path)
    (line,) = small_trainer(loss_weights_lr=0.1, evaluate=lambda: {"top1": 0.5}).train(1, tmp_path, "auto")
    assert line["top1"] == 0.5


def test_rates_follow_the_images_of_a_step(tmp_path, capfd):
    options = {"lr": 0.512, "min_lr": 0.064, "loss_weights_lr": 5.12}
    trainer = small_trainer(lr_per=512, accumulate=2, progress=True, **options)
    line = trainer.train(1, tmp_path)[0]
    assert line["lr"] == pytest.approx(0.016) and line["loss_weights_lr"] == pytest.approx(0.16)
    assert trainer.min_lr == pytest.approx(0.002)
    assert capfd.readouterr().err.startswith("train: lr is 0.016 for 16 images in a step\n")
    found = [trained(tmp_path / str(per), 1, lr=0.008, lr_per=per) for per in (64, 32)]
    truth = trained(tmp_path / "truth", 1, lr=0.001)
    assert found[0] == truth != found[1]


def test_sizes_of_steps():
    def images(batches, accumulate=1, processes=1):
        return images_of_step(batches, accumulate, processes)

    assert images(training_loader(Photos(), 8, workers=0), 3, 2) == 48
    assert images(training_loader(Photos(), 8, per_identity=2, workers=0)) == 8
    assert images(plain_loader()) == 8
    assert images([{"label": [0]}, {"label": [0, 1]}]) == 2
    assert images([]) is None and images(iter([])) is None


def test_arguments_that_do_not_fit_together_are_all_named():
    with pytest.raises(ValueError) as caught:
        small_trainer([], min_lr=0.5, lr_per=64)
    assert str(caught.value) == (
        "min_lr must be at most lr, 0.001, got 0.5; lr_per must be None for batches without a batch_size, "
        "got 64"
    )


OPTIONS: dict[str, Any] = {
    "lr_per": 16,
    "min_lr": 1e-5,
    "bias_lr_scale": 2.0,
    "layer_decay": 0.5,
    "loss_weights_lr": 0.01,
    "weight_decay_exclude_1d": True,
}


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    truth = trained(tmp_path / "truth", **OPTIONS)
    assert truth != trained(tmp_path / "default")
    trainer = small_trainer(**OPTIONS)
    trainer.train(2, tmp_path / "resumed", resume=tmp_path / "truth" / "checkpoint.1.pt")
    assert bits([trainer.model.state_dict(), trainer.weighting.state_dict()]) == truth


def test_checkpoints_of_earlier_versions_go_on_with_the_defaults_alone(tmp_path):
    """They do not hold the newer settings."""
    trained(tmp_path / "default")
    state = load_checkpoint(tmp_path / "default" / "checkpoint.1.pt")
    for name in ADDED_SETTINGS:
        del state["settings"][name]
    save_checkpoint(tmp_path / "old.pt", state)
    for name, value in OPTIONS.items():
        with pytest.raises(ValueError, match=rf"from: {name} must be (None|False|\d\.0), got {value}$"):
            small_trainer(**{name: value}).train(2, tmp_path / "on", resume=tmp_path / "old.pt")
    small_trainer().train(2, tmp_path / "on", resume=tmp_path / "old.pt")
    on, default = (load_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("on", "default"))
    assert bits(on) == bits(default)


def norm_after(optimizer: str, steps: int = 300) -> float:
    """Norm of matrices whose outputs are right, after steps at DeiT's peak rate, relative to before."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4))
    matrices = [network[0].weight, network[2].weight]
    for matrix in matrices:
        nn.init.trunc_normal_(matrix, std=0.02)  # a vision transformer's
    photos = torch.randn(32, 16)
    answers = network(photos).detach()
    before = torch.cat([matrix.detach().flatten() for matrix in matrices]).norm()
    descent = make_optimizer(network, optimizer, lr=5e-4, weight_decay=0.05)
    for _ in range(steps):
        descent.zero_grad()
        F.mse_loss(network(photos), answers).backward()
        descent.step()
    return float(torch.cat([matrix.detach().flatten() for matrix in matrices]).norm() / before)


def test_coupled_decay_in_adam_erases_weights_that_adamw_keeps():
    """L2 regularization enters Adam's gradient, whose size Adam divides out again."""
    assert norm_after("adam") < 0.1 and norm_after("adamw") > 0.98
