"""What a checkpoint must hold for a run to go on from it: every fault, and everything that has changed."""

import math
from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..arguments import Rule, integer, optional, violations
from ..data.records import Batch
from ..model import DualAttentionModel
from .loader import length
from .run_settings import FREE_MODEL_ARGUMENTS, differences, plain

REQUIRED_KEYS = (
    "model_state_dict",
    "optimizer_state_dict",
    "uncertainty_loss_state_dict",
    "epoch",
    "history",
    "step",
    "skipped",
    "sums",
    "rng_state",
    "best",
    "settings",
)
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
# Settings that checkpoints of earlier versions do not hold, with the values that their runs had.
ADDED_SETTINGS = {
    "lr_per": None,
    "min_lr": 0.0,
    "bias_lr_scale": 1.0,
    "layer_decay": None,
    "loss_weights_lr": None,
    "weight_decay_exclude_1d": False,
    "metric_loss": "triplet",
    "freeze_epochs": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
MAX_NAMES = 3  # of parameters, in an error


def _is_plain(value: Any) -> bool:
    faults: list[str] = []
    plain("", value, faults)
    return isinstance(value, dict) and not faults


def _are_numbers(line: dict[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, int | float) for name, value in line.items())


def _is_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == () and value.is_floating_point()


def _is_generator(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8


PLAIN: Rule = (_is_plain, "a dict of plain values")
WEIGHTS: Rule = (lambda v: isinstance(v, dict), "a dict of tensors")
RULES: dict[str, Rule] = {
    "model_state_dict": WEIGHTS,
    "uncertainty_loss_state_dict": WEIGHTS,
    "settings": PLAIN,
    "epoch": integer(0),
    "step": integer(0),
    "skipped": integer(0),
    "history": (
        lambda v: isinstance(v, list) and all(isinstance(line, dict) and _are_numbers(line) for line in v),
        "a list of dicts of numbers",
    ),
    "best": (lambda v: isinstance(v, float) and v == v, "a float"),
    "sums": (lambda v: isinstance(v, dict) and all(map(_is_loss, v.values())), "a dict of scalar tensors"),
    "rng_state": (
        lambda v: isinstance(v, list) and all(isinstance(x, list) and all(map(_is_generator, x)) for x in v),
        "a list of lists of uint8 tensors",
    ),
}
# Checkpoints of earlier versions lack some of these.
OPTIONAL_RULES: dict[str, Rule] = {
    "ema_state_dict": optional(WEIGHTS),
    "branch_loss_state_dict": WEIGHTS,
    "model_arguments": optional(PLAIN),
    "description": optional(PLAIN),
    "scaler_state_dict": optional(
        (lambda v: isinstance(v, dict) and _are_numbers(v), "a dict of numbers"),
    ),
}


def type_faults(state: dict[str, Any]) -> list[str]:
    """Everything in a checkpoint that is not of its kind; it holds `REQUIRED_KEYS`."""
    present = {name: rule for name, rule in OPTIONAL_RULES.items() if name in state}
    return violations(state, RULES | present)


def changes(
    state: dict[str, Any],
    settings: dict[str, Any],
    model_arguments: dict[str, Any] | None,
    description: dict[str, Any] | None,
) -> list[str]:
    """Everything that the results depend on and that was different, by name.

    A checkpoint of an earlier version lacks newer settings: its run had the values of `ADDED_SETTINGS`, and
    others cannot be compared. Its model had the defaults of the arguments that it lacks.

    Args:
        state: The checkpoint, without `type_faults`.
        settings: Of the run that wants to go on, as `Run` has them.
        model_arguments: Likewise.
        description: Likewise.
    """
    before = state["settings"]
    if absent := [name for name in RESUME_SETTINGS if name not in before]:
        return [f"settings must hold {', '.join(absent)}"]
    before = ADDED_SETTINGS | before
    now = {name: value for name, value in settings.items() if name in before}
    if state["best"] == -math.inf:  # nothing was chosen by it yet
        now.pop("best_by", None)
    before = {name: before[name] for name in now}
    found = _changed_parameters(before.pop("learning_parameters", None), now.pop("learning_parameters", None))
    found += _changed_photos(before, now)
    found += [sentence.replace("batches.batches.", "batches.") for sentence in differences("", before, now)]
    if state.get("model_arguments") is not None and model_arguments is not None:
        kept = [
            {name: value for name, value in arguments.items() if name not in FREE_MODEL_ARGUMENTS}
            for arguments in (_with_defaults(state["model_arguments"], model_arguments), model_arguments)
        ]
        found += differences("model", *kept)
    if "description" in state:
        found += differences("description", state["description"] or {}, description or {})
    return found


def _with_defaults(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A model's arguments with the defaults of those that only `now` has."""
    parameters = signature(DualAttentionModel.__init__).parameters
    absent = {name: parameters[name].default for name in now if name in parameters and name not in before}
    return before | plain("model", absent, [])


def _changed_parameters(before: Any, now: Any) -> list[str]:
    if before == now or not isinstance(before, list):
        return []
    frozen = [name for name in map(str, before) if name not in now]
    more = [name for name in now if name not in before]
    parts = [
        f"{len(names)} {words} ({', '.join(names[:MAX_NAMES])}{', ...' * (len(names) > MAX_NAMES)})"
        for names, words in ((frozen, "that do not learn now"), (more, "that did not learn before"))
        if names
    ]
    got = " and ".join(parts) or "them in another order"
    return [f"the parameters that learn (requires_grad) must be the same as before, got {got}"]


def _changed_photos(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Photos are compared by a digest, which says nothing to a reader."""
    old, new = before.get("batches"), now.get("batches")
    if not isinstance(old, dict) or not isinstance(new, dict) or not {"content"} <= set(old) & set(new):
        return []
    before["batches"], now["batches"] = (
        {name: value for name, value in batches.items() if name != "content"} for batches in (old, new)
    )
    if old["content"] == new["content"]:
        return []
    return ["batches must give the same photos as before, with the same labels in the same order, got others"]


def progress_faults(
    state: dict[str, Any], batches: Iterable[Batch], accumulate: int, processes: int
) -> list[str]:
    """Everything about a checkpoint's progress that cannot be; it is without `type_faults`."""
    epoch, step, history = state["epoch"], state["step"], state["history"]
    faults = []
    if len(history) != epoch or any(line.get("epoch") != n for n, line in enumerate(history, start=1)):
        faults.append(f"history must hold a line for each of the epochs 1 to {epoch}, in this order")
    steps = length(batches)
    if steps is not None and step > math.ceil(steps / accumulate):
        faults.append(f"step must be at most the number of steps of an epoch, got {step}")
    if state["skipped"] > step:
        faults.append(f"skipped must be at most step, {step}, got {state['skipped']}")
    if (step > state["skipped"]) != ("total_loss" in state["sums"]):
        faults.append("sums must hold total_loss if and only if steps are done")
    if len(state["rng_state"]) != processes:
        faults.append(
            "rng_state must hold the random generators of each process of the launch, "
            f"{processes}, got those of {len(state['rng_state'])}"
        )
    return faults
