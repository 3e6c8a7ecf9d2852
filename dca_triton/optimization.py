"""The trainer's arguments, its optimizer and its learning rate."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

ALLOWED = {
    "optimizer": (lambda v: v in OPTIMIZERS, "'adam', 'adamw' and 'sgd'"),
    "lr": (lambda v: 0 < v < math.inf, "a finite number above 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "a finite number of at least 0"),
    "warmup_epochs": (lambda v: v >= 0, "at least 0"),
    "label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "evaluate_every": (lambda v: v >= 0, "at least 0"),
    "clip_grad": (lambda v: v is None or v > 0, "above 0, or None"),
    "accumulate": (lambda v: v >= 1, "at least 1"),
    "precision": (lambda v: v in ("no", "bf16", "fp16"), "'no', 'bf16' and 'fp16'"),
    "ema_decay": (lambda v: v is None or 0 < v < 1, "in (0, 1), or None"),
    "keep_last": (lambda v: v >= 1, "at least 1"),
    "save_every": (lambda v: v >= 1, "at least 1"),
    "on_nonfinite": (lambda v: v in ("stop", "skip"), "'stop' and 'skip'"),
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
    faults = [
        f"{name} is {arguments[name]!r}; allowed is {text}"
        for name, (fits, text) in ALLOWED.items()
        if not fits(arguments[name])
    ]
    if faults:
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
