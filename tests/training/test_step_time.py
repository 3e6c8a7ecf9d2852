"""Trainers are timed by turns, on a step of training, and keep their weights."""

import pytest
import torch
from small_training import Photos, small_model, small_trainer

from dca_triton.training import training_loader
from dca_triton.training.epoch import Epoch
from dca_triton.training.step_time import WARMUP, step_times


def test_by_turns_on_the_own_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = {
        "small": small_trainer(training_loader(Photos(), 4, workers=0)),
        "accumulating": small_trainer(
            training_loader(Photos(), 8, workers=0), model=small_model(1), accumulate=2
        ),
    }
    before = [p.detach().clone() for t in trainers.values() for p in t.model.parameters()]
    images, trained = [], []
    step = Epoch.step

    def spy(self: Epoch, group: list, count: int) -> None:
        images.append(count)
        step(self, group, count)
        trained.append(self.run.model.training and self.run.progress.sums["total_loss"].isfinite().item())

    monkeypatch.setattr(Epoch, "step", spy)
    found = step_times(trainers, turns=3)
    assert {name: len(seconds) for name, seconds in found.items()} == {"small": 3, "accumulating": 3}
    assert all(second > 0 for seconds in found.values() for second in seconds)
    assert images == [4, 16] * (WARMUP + 3) and all(trained)
    after = [p for t in trainers.values() for p in t.model.parameters()]
    assert all(map(torch.equal, before, after))


def test_refused() -> None:
    with pytest.raises(ValueError, match="turns must be an integer >= 1, got 0"):
        step_times({}, turns=0)
    with pytest.raises(ValueError, match="at least one batch an epoch, got none for 'x'"):
        step_times({"x": small_trainer([])})
