"""A trainer to read from top to bottom: batches, pairs, three losses, one optimizer, checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from threading import Event
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from .batches import grouped, random_state, same_everywhere, set_epoch
from .checkpoint_folder import CheckpointFolder
from .embedding import Batch
from .losses import BranchLoss, UncertaintyWeightedLoss
from .metrics_log import MetricsLog
from .model import DualAttentionModel
from .optimization import KEPT, check, fsdp_faults, make_optimizer, warmup_cosine
from .pairs import PairSampler
from .training_state import averaged, delayed_sigterm, load_state, state_of
from .training_step import Augment, Objective


class DualAttentionTrainer:
    """Trains SA, GLCA and PWCA together with learnt loss weights, in one process or in many.

    Under `torchrun` or `accelerate launch` each process trains on batches of its own (`training_loader`
    shares them out), and the gradient is that of the joint batch.

    Args:
        model: Moved to this process's GPU, or to the CPU where there is none. `model.compile(fullgraph=True)`
            beforehand compiles its part of the step.
        batches: An iterable of dicts with "image" (B, 3, h, w) and "label" (B,), iterated once an epoch. Its
            `set_epoch`, its samplers' and its dataset's are called with the epoch, from 0.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate, above 0.
        weight_decay: At least 0; not on the loss weights.
        warmup_epochs: Epochs of linear warm-up before the cosine, at least 0.
        label_smoothing: In [0, 1).
        pairs: Which image of the batch distracts which; random by default.
        evaluate: Called after the last epoch and every `evaluate_every` epochs, in every process; its scores
            go to the metrics.
        evaluate_every: Epochs between evaluations, at least 1; 0 evaluates after the last epoch only.
        augment: Applied to the whole batch on the model's device.
        clip_grad: Largest gradient norm; None leaves gradients as they are.
        seed: Of pairs, augmentation and dropout: those of a step follow from it, the epoch and the step.
        progress: Show a progress bar.
        accumulate: Batches whose gradients make one step, at least 1.
        precision: "no" (float32), "bf16", or "fp16" with gradient scaling.
        ema_decay: Evaluate an exponential moving average of the weights, of this decay in (0, 1), and keep it
            in the checkpoint as "ema_state_dict"; None keeps none.
        gather_partners: In several processes, take distractors from all of their images. Each process then
            gathers all images and runs the backbone on its distractors a second time: about half as much
            work again.
        checkpoint_blocks: Keep no activations within blocks; the backward computes them again, which saves
            memory and costs about a third more time.
        keep_last: Checkpoints kept besides the best, at least 1.
        save_every: Epochs between checkpoints, at least 1; the last epoch is always saved.
        best_by: Score, the higher the better, that decides on best.pt; None takes sum_top1 or mAP where
            `evaluate` returns it, else its first.
        on_nonfinite: At a loss that is not finite "stop" training, or "skip" the step and count it.
        tensorboard: Write the metrics for TensorBoard, too.
        description: Plain values, kept in every checkpoint and compared on resume.

    Raises:
        ValueError: Arguments outside their range, every one of them, or not possible here.
    """

    def __init__(
        self,
        model: DualAttentionModel,
        batches: Iterable[Batch],
        *,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        pairs: PairSampler | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        augment: Augment | None = None,
        clip_grad: float | None = None,
        seed: int = 0,
        progress: bool = True,
        accumulate: int = 1,
        precision: Literal["no", "bf16", "fp16"] = "no",
        ema_decay: float | None = None,
        gather_partners: bool = False,
        checkpoint_blocks: bool = False,
        keep_last: int = 2,
        save_every: int = 1,
        best_by: str | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        tensorboard: bool = False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        given = locals()
        check(given)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
        self.processes, self.device = self.accelerator.num_processes, self.accelerator.device
        if self.processes > 1 and same_everywhere(batches):
            raise ValueError(
                "batches gives every process the same photos; allowed is a loader of training_loader or one "
                "with a DistributedSampler"
            )
        if precision == "fp16" and self.device.type == "cpu":
            raise ValueError("precision is 'fp16'; allowed on a CPU are 'no' and 'bf16'")
        if reasons := fsdp_faults(self.accelerator, ema_decay):
            raise ValueError(f"FSDP2 is not possible here: {'; '.join(reasons)}")
        self.model, self.batches, self.evaluate = model, batches, evaluate
        self.evaluate_every, self.save_every, self.keep_last = evaluate_every, save_every, keep_last
        self.warmup_epochs, self.clip_grad, self.accumulate = warmup_epochs, clip_grad, accumulate
        self.on_nonfinite, self.best_by, self.tensorboard = on_nonfinite, best_by, tensorboard
        self.main = self.accelerator.is_main_process
        self.progress = progress and self.main
        self.weighting = UncertaintyWeightedLoss().to(self.device)
        self.ema = None if ema_decay is None else ModelEmaV3(model, ema_decay).to(self.device)
        if checkpoint_blocks:
            model.set_grad_checkpointing()
        self.parallel, self.optimizer = self.accelerator.prepare(
            model, make_optimizer(optimizer, model, lr, weight_decay)
        )
        # Only now: FSDP2 takes no parameters but the model's.
        self.optimizer.add_param_group({"params": list(self.weighting.parameters()), "weight_decay": 0.0})
        self.objective = Objective(
            self.accelerator,
            model,
            self.parallel,
            self.weighting,
            BranchLoss(model.task_type, label_smoothing),
            pairs or PairSampler(),
            augment,
            gather_partners,
            seed,
        )
        self.settings = {name: given[name] for name in KEPT} | {"processes": self.processes}
        self.epoch = self.step = self.skipped = 0  # epochs done; steps done and skipped in the one after them
        self.sums: dict[str, Tensor] = {}  # losses of these steps
        self.epoch_began: list[Tensor] | None = None  # the generators that order the epoch, at its start
        self.history: list[dict[str, float]] = []
        self.best = -math.inf
        self.description = None if description is None else dict(description)

    def train(
        self,
        num_epochs: int,
        save_dir: str | Path,
        resume: Literal["auto"] | str | Path | None = None,
        began: Callable[[], None] = lambda: None,
    ) -> list[dict[str, float]]:
        """Train, writing metrics.jsonl (a line an epoch) and checkpoints to `save_dir`; returns the lines.

        checkpoint.pt is the newest, checkpoint.1.pt the one before it, best.pt that of the best score. On
        SIGTERM the step is finished and a checkpoint saved; then the signal takes its usual effect.

        Args:
            num_epochs: In all, those before a resume included; at least 1.
            save_dir: Made if it does not exist.
            resume: "auto" goes on from the newest sound checkpoint in `save_dir` if there is any, a path from
                that file; the run then ends with the bits of an unbroken one (on a CPU). None starts anew.
            began: Called once, in the main process, when the run is known to be sound.

        Raises:
            ValueError: num_epochs below 1, no batches, or a checkpoint that is damaged or of other settings.
            RuntimeError: A loss that is not finite, with the epoch, the step and the batch's files; the last
                checkpoint is kept.
            OSError: A checkpoint cannot be written, e.g. on a full disk; older ones are whole.
        """
        if num_epochs < 1:
            raise ValueError(f"num_epochs is {num_epochs}; allowed is at least 1")
        folder = CheckpointFolder(save_dir, self.keep_last)
        self._begin(folder, resume)
        if self.main:
            began()
        log = MetricsLog(folder.path, self.history, self.tensorboard) if self.main else None
        bar = tqdm(
            desc="train", unit="epoch", total=num_epochs, initial=self.epoch, disable=not self.progress
        )
        with delayed_sigterm() as told_to_stop:
            while self.epoch < num_epochs:
                lr = self.settings["lr"] * warmup_cosine(self.epoch, num_epochs, self.warmup_epochs)
                for parameters in self.optimizer.param_groups:
                    parameters["lr"] = lr
                losses = self._epoch(told_to_stop)
                if losses is None:
                    self._save(folder.save)
                    break
                line = {"epoch": self.epoch + 1, "lr": lr, **losses}
                self.epoch, self.step, self.skipped, self.sums = self.epoch + 1, 0, 0, {}
                self.epoch_began = None
                last = self.epoch == num_epochs
                evaluates = last or (self.evaluate_every and self.epoch % self.evaluate_every == 0)
                scores = self._evaluate() if evaluates else {}
                self.history.append(line | scores)
                if log is not None:
                    log.write(self.history[-1])
                if (score := self._deciding(scores)) > self.best:
                    self.best = score
                    self._save(folder.save_best)
                if last or self.epoch % self.save_every == 0:
                    self._save(folder.save)
                bar.set_postfix(loss=f"{line['total_loss']:.3f}", refresh=False)
                bar.update()
        return self.history

    def _begin(self, folder: CheckpointFolder, resume: str | Path | None) -> None:
        found = folder.find(resume)
        self.accelerator.wait_for_everyone()  # nobody writes while others still look
        if found is None:
            self._save(folder.save)  # a run killed in its first epoch resumes, and a full disk shows at once
        else:
            load_state(self, *found)

    def _save(self, save: Callable[[dict], None]) -> None:
        state = state_of(self)  # gathers shards: in every process
        if self.main:
            save(state)

    def _evaluate(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        with averaged(self.model, self.ema and self.ema.module):
            scores = self.evaluate()
        return broadcast_object_list([scores])[0]

    def _deciding(self, scores: dict[str, float]) -> float:
        names = [self.best_by] if self.best_by else ["sum_top1", "mAP", *scores]
        return next((scores[name] for name in names if name in scores), -math.inf)

    def _epoch(self, told_to_stop: Event) -> dict[str, float] | None:
        """Mean losses of the epoch, or None when told to stop before its end."""
        self.model.train()
        set_epoch(self.batches, self.epoch)
        self.epoch_began = self.epoch_began or random_state(self.batches)
        groups = grouped(self.batches, self.accumulate)
        for _ in range(self.step):  # a resumed epoch draws its first batches again and drops them
            next(groups)
        steps = math.ceil(len(self.batches) / self.accumulate) if isinstance(self.batches, Sized) else None
        bar = tqdm(total=steps, initial=self.step, leave=False, disable=not self.progress or steps == 1)
        while True:
            group = next(groups, [])
            images = self._agree(sum(len(batch["label"]) for batch in group), told_to_stop)
            if told_to_stop.is_set():
                return None
            if not min(images):  # the epoch ends for all processes when one has no more batches
                break
            self._step(group, sum(images))
            self.step += 1
            bar.update()
        bar.close()
        if not self.step:
            raise ValueError("batches is empty; training needs at least one batch an epoch")
        if self.step == self.skipped:
            raise RuntimeError(f"no step of epoch {self.epoch + 1} had a finite loss")
        sums = self.accelerator.reduce(self.sums, "mean")
        means = {name: float(total) / (self.step - self.skipped) for name, total in sums.items()}
        counted = {"skipped_steps": self.skipped} if self.on_nonfinite == "skip" else {}
        return means | counted | self.weighting.get_current_weights()

    def _agree(self, images: int, told_to_stop: Event) -> list[int]:
        """Each process's number of images in the coming step; one that was told to stop tells the others."""
        if self.processes == 1:
            return [images]
        own = torch.tensor([[images, told_to_stop.is_set()]], device=self.device)
        every = self.accelerator.gather(own).tolist()
        if any(told for _, told in every):
            told_to_stop.set()
        return [count for count, _ in every]

    def _step(self, group: list[Batch], images: int) -> None:
        """One step of the optimizer on the batches of `group`, of `images` images in all processes."""
        skips = self.on_nonfinite == "skip"
        buffers = [buffer.clone() for buffer in self.model.buffers()] if skips else []
        losses = self.objective.backward(group, images, self.epoch, self.step)
        if faults := self.objective.nonfinite(losses["total_loss"], group):
            if not skips:
                where = f"epoch {self.epoch + 1}, step {self.step}"
                raise RuntimeError(f"at {where} {faults}; the last checkpoint is kept")
            self.optimizer.zero_grad()
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # BatchNorm has seen the batch
            self.skipped += 1
            return
        if self.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        self.sums = {name: self.sums.get(name, 0) + loss for name, loss in losses.items()}
