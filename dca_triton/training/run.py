"""A training run: its parts, its progress, and both as a checkpoint holds them."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ..arguments import raise_faults
from ..checkpoint import load_weights
from ..data.records import Batch
from .loader import random_state, set_random_state
from .losses import BranchLoss, UncertaintyWeightedLoss
from .resume import REQUIRED_KEYS, changes, progress_faults, type_faults
from .sharding import load_optimizer, sharded_like, swap_weights, whole


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the current epoch.
        skipped: Steps among them that were skipped, because their loss was not finite.
        sums: The sum of each loss over the other steps, scalars.
        history: The metrics of each finished epoch.
        best: The best score so far, -inf if there is none.
        epoch_began: States of the generators that order the epoch, at its start; None between epochs.
    """

    epoch: int = 0
    step: int = 0
    skipped: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    epoch_began: list[Tensor] | None = None

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.step = self.skipped = 0
        self.sums = {}
        self.epoch_began = None


@dataclass
class Run:
    """A model in training, with its optimizer, batches and progress.

    Attributes:
        accelerator: The accelerator of this process.
        model: The model to evaluate.
        optimizer: Updates the parameters of the model, the weighting and the loss.
        weighting: Weights the losses of the branches.
        branch_loss: The loss of a branch.
        ema: The average of the weights, or None.
        batches: Iterated once an epoch.
        settings: Everything that the results depend on, except the model (see `run_settings`).
        model_arguments: The model's constructor arguments as plain values, or None.
        description: Plain values of the caller, or None.
        progress: The progress of the run.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    weighting: UncertaintyWeightedLoss
    branch_loss: BranchLoss
    ema: ModelEmaV3 | None
    batches: Iterable[Batch]
    settings: dict[str, Any]
    model_arguments: dict[str, Any] | None
    description: dict[str, Any] | None
    progress: Progress = field(default_factory=Progress)

    def has_trained(self) -> bool:
        """True if weights may not be the initial ones; a step that was interrupted has an optimizer state."""
        return bool(self.progress.epoch or self.progress.step or self.optimizer.state)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint, the reference's names first; every process must call this."""
        progress, scaler = self.progress, self.accelerator.scaler
        return {
            "model_state_dict": whole(self.model.state_dict()),
            "optimizer_state_dict": whole(self.optimizer.state_dict()),
            "uncertainty_loss_state_dict": self.weighting.state_dict(),
            "branch_loss_state_dict": self.branch_loss.state_dict(),
            "epoch": progress.epoch,
            "history": progress.history,
            "step": progress.step,
            "skipped": progress.skipped,
            "sums": {name: self.accelerator.reduce(loss, "mean") for name, loss in progress.sums.items()},
            "scaler_state_dict": scaler and scaler.state_dict(),
            "ema_state_dict": self.ema and whole(self.ema.module.state_dict()),
            "rng_state": gather_object([progress.epoch_began or random_state(self.batches)]),
            "best": progress.best,
            "settings": self.settings,
            "model_arguments": self.model_arguments,
            "description": self.description,
        }

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Restore `state`, which was read from `path`.

        Raises:
            ValueError: The state was not written by this trainer, has other settings, or is damaged. Do not
                use the run afterward.
        """
        if absent := [name for name in REQUIRED_KEYS if name not in state]:
            raise ValueError(
                f"checkpoint {path} must be written by DualAttentionTrainer, got one without "
                f"{', '.join(absent)} (load_weights takes the weights of any other)"
            )
        try:
            raise_faults(type_faults(state))
            raise_faults(changes(state, self.settings, self.model_arguments, self.description))
            processes, accumulate = self.accelerator.num_processes, self.settings["accumulate"]
            raise_faults(progress_faults(state, self.batches, accumulate, processes) + self._faults(state))
            self._restore(state)
        except Exception as error:  # the file may hold any plain value in any place
            reason = " ".join((str(error) or repr(error)).split())
            raise ValueError(f"checkpoint {path} cannot be resumed from: {reason}") from error

    def _faults(self, state: dict[str, Any]) -> list[str]:
        """What this run needs in addition."""
        faults = []
        if self.ema is not None and state.get("ema_state_dict") is None:
            faults.append("ema_state_dict must be a dict of tensors, got None")
        scaler = self.accelerator.scaler
        if scaler is not None and set(state.get("scaler_state_dict") or ()) != set(scaler.state_dict()):
            faults.append(f"scaler_state_dict must hold {', '.join(scaler.state_dict())}")
        return faults

    def _restore(self, state: dict[str, Any]) -> None:
        weights = sharded_like(self.model, state["model_state_dict"])
        load_weights(self.model, {"model_state_dict": weights})
        load_optimizer(self.optimizer.optimizer, state["optimizer_state_dict"])
        load_weights(self.weighting, {"model_state_dict": state["uncertainty_loss_state_dict"]})
        load_weights(self.branch_loss, {"model_state_dict": state.get("branch_loss_state_dict", {})})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler_state_dict"])
        if self.ema is not None:
            average = sharded_like(self.ema.module, state["ema_state_dict"])
            load_weights(self.ema.module, {"model_state_dict": average})
        rng = state["rng_state"][self.accelerator.process_index]
        set_random_state(self.batches, rng)
        self.progress = Progress(
            epoch=state["epoch"],
            step=state["step"],
            skipped=state["skipped"],
            sums={name: loss.to(self.accelerator.device) for name, loss in state["sums"].items()},
            history=state["history"],
            best=state["best"],
            epoch_began=rng if state["step"] else None,
        )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the model has the averaged weights, if there are any."""
        if self.ema is None:
            yield
            return
        swap_weights(self.model, self.ema.module)
        try:
            yield
        finally:
            swap_weights(self.model, self.ema.module)
