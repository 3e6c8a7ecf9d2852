"""The trainer's arguments: their ranges, what fits together, and what a resumed run must not change."""

import importlib.util
from typing import Any

from torch import nn

from ..arguments import Rule, choice, flag, integer, number, optional, raise_faults, violations
from . import losses
from .loader import last_batch
from .metric_losses import METRIC_LOSSES
from .optimizer import OPTIMIZERS
from .run_settings import plain

LARGEST = 1e18  # products of two such numbers are within float32, which PyTorch demands of a step
POSITIVE = number(lambda v: 0 < v <= LARGEST, "a number > 0 and <= 1e18")
NOT_NEGATIVE = number(lambda v: 0 <= v <= LARGEST, "a number >= 0 and <= 1e18")
COUNT: Rule = (lambda v: integer(1)[0](v) and v < 2**63, "an integer >= 1 and < 2**63")
FUNCTION: Rule = (callable, "a function")

ARGUMENT_RULES = {
    "optimizer": choice(*OPTIMIZERS),
    "lr": POSITIVE,
    "lr_per": optional(COUNT),
    "min_lr": NOT_NEGATIVE,
    "bias_lr_scale": POSITIVE,
    "layer_decay": optional(number(lambda v: 0 < v <= 1, "in (0, 1]")),
    "loss_weights_lr": optional(POSITIVE),
    "weight_decay": NOT_NEGATIVE,
    "weight_decay_exclude_1d": flag(),
    "warmup_epochs": integer(0),
    "label_smoothing": losses.ARGUMENT_RULES["label_smoothing"],
    "metric_loss": choice(*METRIC_LOSSES),
    "freeze_epochs": integer(0),
    "mixup": NOT_NEGATIVE,
    "cutmix": NOT_NEGATIVE,
    "pairs": optional(FUNCTION),
    "evaluate": optional(FUNCTION),
    "evaluate_every": integer(0),
    "augment": optional(FUNCTION),
    "clip_grad": optional(POSITIVE),
    "seed": integer(0),
    "progress": flag(),
    "accumulate": COUNT,
    "precision": choice("no", "bf16", "fp16"),
    "ema_decay": optional(number(lambda v: 0 < v < 1, "in (0, 1)")),
    "gather_partners": flag(),
    "checkpoint_blocks": flag(),
    "compile": choice("off", "default", "reduce-overhead"),
    "keep_last": integer(1),
    "save_every": integer(1),
    "best_by": optional((lambda v: isinstance(v, str), "a score's name")),
    "on_nonfinite": choice("stop", "skip"),
    "tensorboard": flag(),
}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for every argument of the trainer that is outside its range."""
    faults = violations(arguments, ARGUMENT_RULES)
    if not faults and arguments["best_by"] is not None and arguments["evaluate"] is None:
        faults.append(f"best_by must be None without evaluate, got {arguments['best_by']!r}")
    description = plain("description", arguments["description"], faults)
    if not isinstance(description, dict | None):
        faults.append(f"description must be a dict or None, got {description!r}")
    raise_faults(faults)
    if arguments["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tensorboard must be False without TensorBoard (pip install tensorboard), got True"
        )


def combination_faults(arguments: dict[str, Any], images: int | None) -> list[str]:
    """Return every reason why arguments, each within its range, do not fit together.

    Args:
        arguments: The trainer's.
        images: Images of a step, or None if they are unknown.
    """
    faults, task_type = [], arguments["model"].task_type
    if task_type == "fgvc" and arguments["metric_loss"] != "triplet":
        loss = arguments["metric_loss"]
        faults.append(f"metric_loss must be 'triplet', the default, for a model of 'fgvc', got {loss!r}")
    for name in ("mixup", "cutmix"):
        if task_type == "reid" and arguments[name]:
            faults.append(f"{name} must be 0 for a model of 'reid', got {arguments[name]}")
    if arguments["min_lr"] > arguments["lr"]:
        faults.append(f"min_lr must be at most lr, {arguments['lr']}, got {arguments['min_lr']}")
    if last_batch(arguments["batches"]) == 1 and any(
        isinstance(module, nn.BatchNorm1d) for module in arguments["model"].modules()
    ):
        faults.append("batches must hold 2 photos or more each for a head with BatchNorm1d, got a batch of 1")
    if arguments["lr_per"] is not None and images is None:
        faults.append(f"lr_per must be None for batches without a batch_size, got {arguments['lr_per']}")
    return faults
