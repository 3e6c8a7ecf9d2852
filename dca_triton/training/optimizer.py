"""timm's optimizers and its cosine schedule, as the trainer uses them."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from ..data.records import Batch
from ..model import DualAttentionModel
from .loader import parts_of
from .parameter_groups import parameter_groups

# Arguments by the trainer's name of the optimizer: timm's sgd has Nesterov momentum, the paper's has not.
OPTIMIZERS: dict[str, dict[str, Any]] = {"adam": {}, "adamw": {}, "sgd": {"nesterov": False}}


def make_optimizer(
    model: DualAttentionModel, name: str, lr: float, weight_decay: float, **grouping: Any
) -> torch.optim.Optimizer:
    """Make one of `OPTIMIZERS` for the trainable parameters; `grouping` is that of `parameter_groups`."""
    groups = parameter_groups(model, weight_decay, **grouping)
    return create_optimizer_v2(groups, name, lr=lr, weight_decay=weight_decay, **OPTIMIZERS[name])


def cosine_schedule(
    optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int, lr: float, min_lr: float
) -> CosineLRScheduler:
    """timm's schedule: linear from lr / (warmup_epochs + 1) to `lr`, then a cosine toward `min_lr`.

    `min_lr` would be reached at `epochs`, one after the last. A group's `lr_scale` multiplies all of it.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs - warmup_epochs,
        lr_min=min_lr,
        warmup_t=warmup_epochs,
        warmup_lr_init=lr / (warmup_epochs + 1),
        warmup_prefix=True,
        cycle_decay=0.5,  # of a second cycle, which never comes; 1 would log a warning about a single epoch
    )


def group_lr(group: dict[str, Any]) -> float:
    """The learning rate of a group before its `lr_scale`."""
    return group["lr"] / group.get("lr_scale", 1.0)


def images_of_step(batches: Iterable[Batch], accumulate: int, processes: int) -> int | None:
    """Images of a whole step in all processes; None if the batches do not say how large they are."""
    parts = parts_of(batches)
    sampler = parts.get("batch_sampler")
    size = getattr(sampler, "batch_size", None)
    if size is None and sampler is not None and hasattr(sampler, "p") and hasattr(sampler, "k"):
        size = sampler.p * sampler.k
    if size is None and isinstance(batches, list | tuple) and batches:
        size = max(len(batch["label"]) for batch in batches)
    return None if size is None else size * accumulate * processes
