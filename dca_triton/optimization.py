"""The trainer's arguments, its optimizer and its learning rate."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from .arguments import choice, integer, number, optional, violations

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

ALLOWED = {
    "optimizer": choice(*OPTIMIZERS),
    "lr": number(lambda v: v > 0, "a finite number above 0"),
    "weight_decay": number(lambda v: v >= 0, "a finite number of at least 0"),
    "warmup_epochs": integer(0),
    "label_smoothing": number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "evaluate_every": integer(0),
    "clip_grad": optional(number(lambda v: v > 0, "a finite number above 0")),
    "seed": integer(0),
    "accumulate": integer(1),
    "precision": choice("no", "bf16", "fp16"),
    "ema_decay": optional(number(lambda v: 0 < v < 1, "in (0, 1)")),
    "keep_last": integer(1),
    "save_every": integer(1),
    "on_nonfinite": choice("stop", "skip"),
}

# What must not change between a run and its continuation.
KEPT = (
    "optimizer",
    "lr",
    "weight_decay",
    "warmup_epochs",
    "label_smoothing",
    "clip_grad",
    "seed",
    "accumulate",
    "precision",
    "ema_decay",
    "gather_partners",
)


def check(arguments: dict[str, Any]) -> None:
    """Raise ValueError naming every argument of the trainer outside its range."""
    if faults := violations(arguments, ALLOWED):
        raise ValueError("; ".join(faults))


def fsdp_faults(accelerator: Accelerator, ema_decay: float | None) -> list[str]:
    """Every reason why the launch's FSDP cannot serve; none without FSDP."""
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is None:
        return []
    checks = {
        f"fsdp_version is {plugin.fsdp_version}; allowed is 2": plugin.fsdp_version == 2,
        "fsdp_auto_wrap_policy is given; allowed is NO_WRAP": plugin.auto_wrap_policy is None,
        f"ema_decay is {ema_decay}; allowed is None where weights are sharded": ema_decay is None,
    }
    return [fault for fault, fits in checks.items() if not fits]


def make_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` over the parameters of `model` that learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    return OPTIMIZERS[name](learning, lr=lr, weight_decay=weight_decay, **extra)


def warmup_cosine(epoch: int, epochs: int, warmup: int) -> float:
    """The learning rate of an epoch (from 0) in peaks: linear warm-up, then a cosine that would end at 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
