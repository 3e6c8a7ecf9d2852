"""Time the training step of several trainers by turns."""

import time
from collections.abc import Mapping

import torch

from ..arguments import integer, raise_faults, violations
from .loader import grouped
from .trainer import DualAttentionTrainer

WARMUP = 2  # turns that do not count


def step_times(trainers: Mapping[str, DualAttentionTrainer], turns: int = 20) -> dict[str, list[float]]:
    """Return the seconds of `turns` training steps of each trainer.

    A step is augmentation, pairs, forward, backward, clipping, optimizer and averaging on the first batches
    of the trainer's loader. Decoding of photos is not part of it. The trainers take turns, one step each, so
    that a machine that slows down or speeds up does so for all of them. Two turns before these do not count.
    The learning rate is 0: the weights stay, and no loss can diverge.

    Args:
        trainers: By name; not to be trained afterward.
        turns: Steps of each trainer that count, >= 1.

    Raises:
        ValueError: `turns` below 1, or a trainer without batches.
        RuntimeError: As a training step: no memory, or a loss that is not finite.
    """
    raise_faults(violations({"turns": turns}, {"turns": integer(1)}))
    groups = {name: next(grouped(t.run.batches, t.epoch.accumulate), []) for name, t in trainers.items()}
    raise_faults(
        f"batches must give at least one batch an epoch, got none for {name!r}"
        for name, group in groups.items()
        if not group
    )
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.model.train()
        for parameters in trainer.run.optimizer.param_groups:
            parameters["lr"] = 0.0
    for _ in range(WARMUP + turns):
        for name, trainer in trainers.items():
            images = sum(len(batch["label"]) for batch in groups[name])
            _wait(trainer.device)
            began = time.perf_counter()
            trainer.epoch.step(groups[name], images)
            _wait(trainer.device)
            times[name].append(time.perf_counter() - began)
    return {name: seconds[WARMUP:] for name, seconds in times.items()}


def _wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
