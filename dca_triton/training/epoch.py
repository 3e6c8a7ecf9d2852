"""One epoch of training, from the step that a resumed run has reached."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..data.records import Batch
from ..progress import progress as progress_bar
from .interrupt import StopRequest
from .loader import grouped, length, random_state, set_epoch
from .objective import Objective
from .run import Run


@dataclass(kw_only=True)
class Epoch:
    """The loop over the batches of an epoch.

    Attributes:
        run: The run, with its progress.
        objective: Computes the gradient of a step.
        accumulate: Batches whose gradients make one step.
        clip_grad: Largest gradient norm, or None.
        freeze_epochs: First epochs in which the backbone does not learn.
        on_nonfinite: "stop" or "skip".
        shows_progress: Show a bar.
    """

    run: Run
    objective: Objective
    accumulate: int
    clip_grad: float | None
    freeze_epochs: int
    on_nonfinite: Literal["stop", "skip"]
    shows_progress: bool

    def train(self, stop_requested: StopRequest, stepped: Callable[[], None]) -> dict[str, float] | None:
        """Mean losses of the epoch, or None if a signal stopped it before its end.

        Args:
            stop_requested: The signal that stops it before its next step.
            stepped: Called after each step, unless all steps up to now were skipped.
        """
        progress = self.run.progress
        self.run.model.train()
        set_epoch(self.run.batches, progress.epoch)
        progress.epoch_began = progress.epoch_began or random_state(self.run.batches)
        groups = grouped(self.run.batches, self.accumulate)
        for done in range(progress.step):  # a resumed epoch draws its first batches again and drops them
            if not next(groups, None):
                raise ValueError(f"batches must give the {progress.step} steps that are done, got {done}")
        batches = length(self.run.batches)
        steps = None if batches is None else math.ceil(batches / self.accumulate)
        hidden = not self.shows_progress or steps == 1
        with progress_bar(
            desc="epoch", unit="step", total=steps, initial=progress.step, leave=False, disable=hidden
        ) as bar:
            while True:
                group = next(groups, [])
                images = self._agree(sum(len(batch["label"]) for batch in group), stop_requested)
                if stop_requested.signal:
                    return None
                if not min(images):  # the epoch ends for all processes when one has no more batches
                    break
                self.step(group, sum(images))
                progress.step += 1
                if progress.step > progress.skipped:
                    stepped()
                bar.update()
        return self._means()

    def _means(self) -> dict[str, float]:
        """Return the mean losses of the epoch, the number of skipped steps, and the weights of the losses."""
        progress = self.run.progress
        if not progress.step:
            raise ValueError("batches must give at least one batch an epoch, got none")
        if progress.step == progress.skipped:
            raise RuntimeError(f"no step of epoch {progress.epoch + 1} had a finite loss")
        sums = self.run.accelerator.reduce(progress.sums, "mean")
        means = {name: float(total) / (progress.step - progress.skipped) for name, total in sums.items()}
        counted = {"skipped_steps": progress.skipped} if self.on_nonfinite == "skip" else {}
        weights = self.run.weighting.get_current_weights()
        trained = {name: w for name, w in weights.items() if f"{name.partition('_')[0]}_loss" in sums}
        return means | counted | trained

    def _agree(self, images: int, stop_requested: StopRequest) -> list[int]:
        """Each process's number of images in the coming step; a request to stop reaches all processes."""
        accelerator = self.run.accelerator
        if accelerator.num_processes == 1:
            return [images]
        own = torch.tensor([[images, stop_requested.signal]], device=accelerator.device)
        counts, signals = accelerator.gather(own).T.tolist()
        stop_requested.signal = max(signals)
        return counts

    def step(self, group: list[Batch], images: int) -> None:
        """Take one step of the optimizer on the batches of `group`; all processes have `images` images."""
        run, progress = self.run, self.run.progress
        skips = self.on_nonfinite == "skip"
        buffers = [buffer.clone() for buffer in self.run.model.buffers()] if skips else []
        losses = self.objective.backward(group, images, progress.epoch, progress.step)
        if faults := self.objective.nonfinite(losses["total_loss"], group):
            if not skips:
                where = f"epoch {progress.epoch + 1}, step {progress.step}"
                raise RuntimeError(f"at {where} {faults}; earlier checkpoints are kept")
            run.optimizer.zero_grad()
            for buffer, before in zip(self.run.model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # BatchNorm has seen the batch
            progress.skipped += 1
            return
        if progress.epoch < self.freeze_epochs:
            # The gradient is computed, because DistributedDataParallel waits for it, and then not used: the
            # optimizer passes over parameters without one, also their decay and momentum.
            for parameter in self.objective.model.backbone.parameters():
                parameter.grad = None
        if self.clip_grad is not None:
            self.run.accelerator.clip_grad_norm_(self.run.model.parameters(), self.clip_grad)
        run.optimizer.step()
        run.optimizer.zero_grad()
        if run.ema is not None:
            run.ema.update(self.run.model)
        progress.sums = {name: progress.sums.get(name, 0) + loss for name, loss in losses.items()}
