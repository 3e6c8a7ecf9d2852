"""A run's state as a checkpoint holds it and back; averaged weights; a SIGTERM that waits."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .arguments import integer, violations
from .batches import random_state, set_random_state
from .checkpoint import load_weights

if TYPE_CHECKING:
    from .training import DualAttentionTrainer

OURS = ("epoch", "history", "step", "skipped", "sums", "rng_state", "best", "settings")
PLAIN = {
    "epoch": integer(0),
    "step": integer(0),
    "skipped": integer(0),
    "history": (
        lambda v: isinstance(v, list) and all(isinstance(line, dict) for line in v),
        "a list of dicts",
    ),
    "best": (lambda v: isinstance(v, float), "a float"),
}


def state_of(run: "DualAttentionTrainer") -> dict[str, Any]:
    """What a checkpoint holds: the reference's names first; every process calls it and gets all of it.

    "epoch" counts the epochs done, "step" the steps of the next one that are done, too.
    """
    scaler = run.accelerator.scaler
    return {
        "model_state_dict": whole(run.model.state_dict()),
        "optimizer_state_dict": whole(run.optimizer.state_dict()),
        "uncertainty_loss_state_dict": run.weighting.state_dict(),
        "epoch": run.epoch,
        "history": run.history,
        "step": run.step,
        "skipped": run.skipped,
        "sums": {name: run.accelerator.reduce(loss, "mean") for name, loss in run.sums.items()},
        "scaler_state_dict": scaler and scaler.state_dict(),
        "ema_state_dict": run.ema and run.ema.module.state_dict(),
        "rng_state": gather_object([run.epoch_began or random_state(run.batches)]),
        "best": run.best,
        "settings": run.settings,
        "description": run.description,
        "model_arguments": _arguments(run.model),
    }


def load_state(run: "DualAttentionTrainer", path: Path, state: dict[str, Any]) -> None:
    """Put a trainer where `state`, read from `path`, was taken.

    Raises:
        ValueError: Another trainer's checkpoint, other settings, or contents that do not fit; the trainer is
            then not to be used.
    """
    if absent := [name for name in OURS if name not in state]:
        raise ValueError(
            f"checkpoint {path} holds no {', '.join(absent)}; allowed is one written by this trainer "
            "(load_weights takes the weights of any other)"
        )
    try:
        _restore(run, state)
    except Exception as error:  # tensors and plain values of any kind in any place
        raise ValueError(f"checkpoint {path} cannot be resumed from: {str(error) or repr(error)}") from error


def _restore(run: "DualAttentionTrainer", state: dict[str, Any]) -> None:
    before = state["settings"]
    others = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in run.settings.items()
        if before.get(name) != value
    ]
    if run.description is not None and state.get("description") is not None:
        others += [
            f"{name} was {state['description'].get(name)!r} and is {value!r}"
            for name, value in run.description.items()
            if state["description"].get(name) != value
        ]
    if others:
        raise ValueError(f"it is of a run with other settings: {'; '.join(others)}")
    if faults := violations(state, PLAIN):
        raise ValueError("; ".join(faults))
    load_weights(run.model, sharded(state["model_state_dict"], run.model.state_dict()))
    load_optimizer(run.optimizer.optimizer, state["optimizer_state_dict"])
    run.weighting.load_state_dict(state["uncertainty_loss_state_dict"])
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(state["scaler_state_dict"])
    if run.ema is not None:
        load_weights(run.ema.module, state["ema_state_dict"])
    run.epoch, run.step, run.skipped = state["epoch"], state["step"], state["skipped"]
    run.sums = {name: loss.to(run.device) for name, loss in state["sums"].items()}
    run.history, run.best = state["history"], state["best"]
    rng = state["rng_state"][run.accelerator.process_index]
    set_random_state(run.batches, rng)
    run.epoch_began = rng if run.step else None


def _arguments(model: nn.Module) -> dict[str, Any] | None:
    """The constructor's arguments as plain values; None if some are not."""
    config = getattr(model, "_hub_mixin_config", None)
    return None if config is None or getattr(model, "_not_json", []) else dict(config)


def whole(tree: Any) -> Any:
    """A state dict with every tensor gathered that processes share (FSDP2); every process calls it."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def sharded(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, sharded where `like` is."""
    return {key: _as(value, like.get(key)) for key, value in weights.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's whole state, sharded where its parameters are."""
    optimizer.load_state_dict(state)
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = _as(value, parameter)


def _as(value: Tensor, like: Tensor | None) -> Tensor:
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


@contextlib.contextmanager
def averaged(model: nn.Module, average: nn.Module | None) -> Iterator[None]:
    """Within it `model` has the weights of `average`, a copy of it; None changes nothing."""
    if average is None:
        yield
        return
    _swap(model, average)
    try:
        yield
    finally:
        _swap(model, average)


def _swap(model: nn.Module, other: nn.Module) -> None:
    for own, its in zip(
        [*model.parameters(), *model.buffers()], [*other.parameters(), *other.buffers()], strict=True
    ):
        own.data, its.data = its.data, own.data


@contextlib.contextmanager
def delayed_sigterm() -> Iterator[threading.Event]:
    """Within it SIGTERM only sets the event; on leaving it takes the effect that it had before.

    Signals reach the main thread alone; in another thread this changes nothing.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
    if asked.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
