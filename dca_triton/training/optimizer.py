"""The trainer's arguments, its optimizer and its learning rate."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType
from torch import nn

from ..arguments import Rule, choice, flag, integer, number, optional, raise_faults, violations
from .losses import BRANCHES
from .run_settings import plain, stable_repr

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
LARGEST = 1e18  # products of two such numbers are within float32, which PyTorch demands of a step
POSITIVE = number(lambda v: 0 < v <= LARGEST, "a number > 0 and <= 1e18")
COUNT: Rule = (lambda v: integer(1)[0](v) and v < 2**63, "an integer >= 1 and < 2**63")
FUNCTION: Rule = (callable, "a function")

ARGUMENT_RULES = {
    "optimizer": choice(*OPTIMIZERS),
    "lr": POSITIVE,
    "weight_decay": number(lambda v: 0 <= v <= LARGEST, "a number >= 0 and <= 1e18"),
    "warmup_epochs": integer(0),
    "label_smoothing": number(lambda v: 0 <= v < 1, "in [0, 1)"),
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
    "keep_last": integer(1),
    "save_every": integer(1),
    "best_by": optional((lambda v: isinstance(v, str), "a score's name")),
    "on_nonfinite": choice("stop", "skip"),
    "tensorboard": flag(),
}

# Every checkpoint holds these; a resumed run must not change them.
RESUME_SETTINGS = (
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
    "processes",
)


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
        raise ModuleNotFoundError("tensorboard=True needs TensorBoard: pip install tensorboard")


def check_scores(
    scores: Any, line: Mapping[str, float], best_by: str | None
) -> tuple[dict[str, float], list[str]]:
    """Return the scores of `evaluate` as floats, or no scores and their faults.

    Args:
        scores: The result of `evaluate`.
        line: The other metrics of the epoch.
        best_by: The score that is required, or None.
    """
    if not isinstance(scores, Mapping):
        return {}, [f"evaluate must return a dict of numbers, got a {type(scores).__name__}"]
    faults = []
    numbers: dict[str, float] = {}
    for name, value in scores.items():
        try:
            numbers[str(name)] = float(value)  # also of NumPy and PyTorch
        except (TypeError, ValueError, RuntimeError):
            faults.append(f"evaluate must return numbers, got {stable_repr(value)} as {name}")
    if taken := sorted(set(numbers) & set(line)):
        faults.append(f"evaluate must return names other than {', '.join(line)}, got {', '.join(taken)}")
    if best_by is not None and best_by not in numbers:
        faults.append(
            f"best_by must be one of the scores {', '.join(numbers)}, got {best_by!r}; the run is saved and "
            "can be resumed with another"
        )
    return ({} if faults else numbers), faults


def has_scores(line: Mapping[str, float]) -> bool:
    """True if an epoch's metrics hold more than training itself writes."""
    losses = [f"{branch}_loss{part}" for branch in BRANCHES for part in ("", "_weight", "_log_var")]
    return not set(line) <= {"epoch", "lr", "total_loss", "skipped_steps", *losses}


def precision_faults(precision: str) -> list[str]:
    """Accelerate computes in one precision in a process; none if no other was chosen before."""
    chosen = AcceleratorState().mixed_precision if is_initialized() else precision
    if precision == chosen:
        return []
    return [f"precision must be {chosen!r} as in the trainer before it in this process, got {precision!r}"]


def fsdp_faults(accelerator: Accelerator) -> list[str]:
    """Return every reason why the FSDP settings of the launch cannot be used; none without FSDP."""
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is None or plugin.fsdp_version == 2:
        return []
    return [f"fsdp_version must be 2, got {plugin.fsdp_version}"]


def make_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make one of `OPTIMIZERS` for the trainable parameters of `model`."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    return OPTIMIZERS[name](learning, lr=lr, weight_decay=weight_decay, **extra)


def warmup_cosine(epoch: int, epochs: int, warmup: int) -> float:
    """The learning rate of an epoch (from 0) relative to its peak: linear warm-up, then a cosine to 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
