"""The trainer: batches, pairs, three losses, one optimizer, checkpoints."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from accelerate.utils import broadcast_object_list
from timm.utils.model_ema import ModelEmaV3

from ..arguments import optional, raise_faults, violations
from ..data.augmentation import mixing
from ..data.records import Batch
from ..model import DualAttentionModel
from ..progress import progress as progress_bar
from ..run_folder import RunFolder
from .checks import COUNT, check_arguments, combination_faults
from .epoch import Epoch
from .interrupt import delayed_interrupts
from .launch import make_accelerator
from .loader import length
from .losses import MetricLoss, UncertaintyWeightedLoss
from .objective import Augment, Objective
from .optimizer import cosine_schedule, group_lr, images_of_step, make_optimizer
from .pairs import PairSampler
from .parts import make_branch_loss, prepared
from .resume import ADDED_SETTINGS, RESUME_SETTINGS
from .run import Progress, Run
from .run_settings import describe, model_arguments, plain
from .scoring import Scoring
from .sharding import is_sharded, shard_parameters

PATH = (lambda v: isinstance(v, str | os.PathLike), "a path")
TRAIN_RULES = {"num_epochs": COUNT, "save_dir": PATH, "resume": optional(PATH)}


class DualAttentionTrainer:
    """Trains SA, GLCA and PWCA together with learned loss weights, in one process or in many.

    Under `torchrun` or `accelerate launch` each process trains on its own batches (`training_loader` divides
    them), and the gradient is that of the joint batch. Accelerate's FSDP2 shards the model as
    one unit, or each block by its auto_wrap_policy TRANSFORMER_BASED_WRAP.

    Args:
        model: Moved to the GPU of this process, or to the CPU if there is none.
            `model.compile(fullgraph=True)` beforehand compiles its part of the step.
        batches: An iterable of dicts with "image" (B, 3, h, w) and "label" (B,), iterated once an epoch. Its
            `set_epoch`, and that of its samplers and its dataset, are called with the epoch, from 0. A
            DataLoader of your own with persistent workers gets new workers each epoch, because the random
            state of old ones cannot be resumed; that of `training_loader` keeps them.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate, > 0 and <= 1e18.
        lr_per: `lr`, `min_lr` and `loss_weights_lr` are the rates for this many images in a step, >= 1; e.g.
            512 in DeiT's recipe. They are scaled in proportion to the images of a step here (batch size x
            accumulate x processes). None does not scale them.
        min_lr: The learning rate that the cosine falls to, >= 0 and <= `lr`.
        bias_lr_scale: Factor of the learning rate of all biases, > 0; 2 in TransReID's recipe.
        layer_decay: The learning rate of each layer of the backbone is that of the layer above it times this
            factor, in (0, 1]; everything on top of the backbone has the full rate. With None, all layers have
            the same rate.
        loss_weights_lr: Peak learning rate of the loss weights, > 0; None takes `lr`.
        weight_decay: Weight decay, >= 0 and <= 1e18; not applied to the loss weights. In "adam" it is L2
            regularization, in "adamw" it is decoupled.
        weight_decay_exclude_1d: No decay of norms and biases, nor of the backbone's position embedding and
            tokens (timm's `no_weight_decay`), nor of the embeddings of cameras and views.
        warmup_epochs: Epochs of linear warm-up before the cosine, >= 0; fewer than the epochs to train.
        label_smoothing: Label smoothing of the cross entropy, in [0, 1].
        metric_loss: The loss on the embeddings of a "reid" model: "triplet" with margin 0.3,
            "soft_margin_triplet" (TransReID), "circle", "arcface" or "cosface" (see `BranchLoss`).
        freeze_epochs: The number of first epochs, >= 0, in which the backbone does not learn. In
            layout="paper" the backbone holds all blocks except GLCA's. These epochs take as long as others.
        mixup: Mix pairs of images and their labels, with weights from Beta(mixup, mixup), >= 0 (Zhang et al.,
            2018); for "fgvc" only. 0 turns it off. With both `mixup` and `cutmix`, each step uses one of the
            two at random.
        cutmix: The same, but a rectangle of one image replaces that of the other (Yun et al., 2019).
        pairs: Chooses each image's distractor in the batch; random by default.
        evaluate: Called after the last epoch and every `evaluate_every` epochs, in every process; returns
            scores by name, which go to the metrics.
        evaluate_every: Epochs between evaluations, >= 1; 0 evaluates after the last epoch only.
        augment: Applied to the whole batch on the device of the model.
        clip_grad: Largest gradient norm; None does not clip.
        seed: Seeds pairs, augmentation and dropout. The randomness of a step depends only on (seed, epoch,
            step, process).
        progress: Show a progress bar, or lines at intervals without a terminal.
        accumulate: Batches whose gradients make one step, >= 1.
        precision: "no" (float32), "bf16", or "fp16" with gradient scaling (on GPUs). All trainers of a
            process must have the same precision.
        ema_decay: Evaluate an exponential moving average of the weights, with this decay in (0, 1), and keep
            it in the checkpoint as "ema_state_dict"; None keeps no average.
        gather_partners: In several processes, take distractors from the images of all of them. Each process
            then gathers all images and runs the backbone a second time on its distractors, which costs about
            50 % more work.
        checkpoint_blocks: Keep no activations within blocks; the backward pass computes them again, which
            saves memory and costs about a third more time.
        compile: Compile the model with torch.compile: "off", "default", or "reduce-overhead", which also
            replays the model as CUDA graphs. A model that you compiled yourself needs "off".
        keep_last: Checkpoints to keep in addition to the best, >= 1.
        save_every: Epochs between checkpoints, >= 1; the last epoch is always saved.
        best_by: The score that decides which checkpoint is best.pt; higher is better. None takes sum_top1 or
            mAP if `evaluate` returns it, else the first score.
        on_nonfinite: If the loss is not finite, "stop" training, or "skip" the step and count it.
        tensorboard: Also write the metrics for TensorBoard.
        description: Plain values (None, bool, int, float, str, and lists and dicts of these) that every
            checkpoint holds as "description", e.g. the names of the classes.

    Raises:
        ValueError: Arguments outside their range, all of them at once, or not supported here.
        ModuleNotFoundError: `tensorboard` without TensorBoard.
    """

    def __init__(
        self,
        model: DualAttentionModel,
        batches: Iterable[Batch],
        *,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        lr: float = 5e-4,
        lr_per: int | None = None,
        min_lr: float = 0.0,
        bias_lr_scale: float = 1.0,
        layer_decay: float | None = None,
        loss_weights_lr: float | None = None,
        weight_decay: float = 0.05,
        weight_decay_exclude_1d: bool = False,
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        metric_loss: MetricLoss = "triplet",
        freeze_epochs: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
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
        compile: Literal["off", "default", "reduce-overhead"] = "off",
        keep_last: int = 2,
        save_every: int = 1,
        best_by: str | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        tensorboard: bool = False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = locals()
        check_arguments(arguments)
        self.accelerator = make_accelerator(precision, batches)
        self.processes, self.device = self.accelerator.num_processes, self.accelerator.device
        self.images = images_of_step(batches, accumulate, self.processes)
        raise_faults(combination_faults(arguments, self.images))
        share = 1.0 if lr_per is None or self.images is None else self.images / lr_per

        self.lr, self.min_lr = lr * share, min_lr * share
        self.lr_per = lr_per
        self.warmup_epochs = warmup_epochs
        self.keep_last = keep_last
        self.tensorboard = tensorboard
        self.main = self.accelerator.is_main_process
        self.shows_progress = progress and self.main

        self.model = getattr(model, "_orig_mod", model)  # a compiled model would save names with a prefix
        self.weighting = UncertaintyWeightedLoss().to(self.device)
        self.branch_loss = make_branch_loss(self.model, label_smoothing, metric_loss, seed)
        self.branch_loss.to(self.device)
        ema = None if ema_decay is None else ModelEmaV3(self.model, ema_decay).to(self.device)
        if checkpoint_blocks:
            self.model.set_grad_checkpointing()
        if compile != "off":
            self.model.compile(mode=compile)
        grouping = {
            name: arguments[name] for name in ("weight_decay_exclude_1d", "layer_decay", "bias_lr_scale")
        }
        parallel, optimized = prepared(
            self.accelerator,
            model,
            make_optimizer(self.model, optimizer, self.lr, weight_decay, **grouping),
            self.branch_loss,
            self.weighting,
            None if loss_weights_lr is None else loss_weights_lr / lr,
        )
        if ema is not None and is_sharded(self.model):
            shard_parameters(ema.module, self.model)
            ema.foreach = False  # foreach does not support a mixture of sharded and whole tensors
        self.objective = Objective(
            accelerator=self.accelerator,
            model=self.model,
            parallel=parallel,
            weighting=self.weighting,
            branch_loss=self.branch_loss,
            pairs=pairs or PairSampler(),
            augment=augment,
            mix=mixing(mixup, cutmix, model.num_classes),
            gather_partners=gather_partners,
            seed=seed,
        )
        plain_arguments = [name for name in RESUME_SETTINGS if name != "processes"] + [*ADDED_SETTINGS]
        settings = {name: arguments[name] for name in plain_arguments}
        settings |= {"processes": self.processes, "on_nonfinite": on_nonfinite, "best_by": best_by}
        settings |= describe(self.model, batches, self.objective.pairs, augment)
        self.run = Run(
            accelerator=self.accelerator,
            model=self.model,
            optimizer=optimized,
            weighting=self.weighting,
            branch_loss=self.branch_loss,
            ema=ema,
            batches=batches,
            settings=broadcast_object_list([settings])[0],  # the batches of processes may differ
            model_arguments=model_arguments(self.model),
            description=plain("description", description, []),
        )
        self.epoch = Epoch(
            run=self.run,
            objective=self.objective,
            accumulate=accumulate,
            clip_grad=clip_grad,
            freeze_epochs=freeze_epochs,
            on_nonfinite=on_nonfinite,
            shows_progress=self.shows_progress,
        )
        self.scoring = Scoring(
            run=self.run,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            save_every=save_every,
            best_by=best_by,
        )

    def train(
        self,
        num_epochs: int,
        save_dir: str | os.PathLike[str] = "runs/train",
        resume: Literal["auto"] | str | os.PathLike[str] | None = None,
        began: Callable[[], None] | None = None,
    ) -> list[dict[str, float]]:
        """Train, write metrics.jsonl (a line per epoch) and checkpoints to `save_dir`, and return the lines.

        checkpoint.pt is the newest, checkpoint.1.pt the one before it, best.pt the one of the best score.
        Files of an earlier run in `save_dir` stay until the first step of this one is done. On SIGTERM or
        Ctrl-C, the step is finished and a checkpoint saved; then the signal takes its usual effect. A second
        Ctrl-C stops at once.

        A resumed run must have the settings of its checkpoint: batches, pairs, model, optimizer, description
        and everything else that changes the result. You may change num_epochs, evaluate, evaluate_every,
        save_every, keep_last, progress, tensorboard, checkpoint_blocks, compile, worker processes and
        `save_dir`. The learning rate then follows the cosine of the new num_epochs. You may change `best_by`
        as long as there is no best.pt. If the last epoch done is to be evaluated and has no scores, because
        `evaluate` or `best_by` was wrong or because the run was longer, it is evaluated first.

        Args:
            num_epochs: In all, including those before a resume; >= 1 and more than `warmup_epochs`.
            save_dir: The folder of the run, made if it does not exist. A new run removes the checkpoints,
                evaluation.json and TensorBoard's files of an earlier one in it after its first step.
            resume: "auto" continues from the newest undamaged checkpoint in `save_dir`, if there is one; a
                path continues from this file. On a CPU, the result is bit-identical to that of an
                uninterrupted run, also in the same trainer after Ctrl-C or an error. None begins a new run,
                which needs a new trainer.
            began: Called once in the main process, after the first step and before files of an earlier run
                are removed; e.g. to write more about the run. If it raises, the earlier run is unchanged.

        Raises:
            ValueError: num_epochs below 1, below the epochs done or within the warm-up, no batches, a
                checkpoint that is damaged or of other settings, none for a trainer that has trained, or
                scores without `best_by`.
            RuntimeError: A loss that is not finite, with the epoch, the step and the files of the batch;
                earlier checkpoints are kept.
            OSError: A checkpoint cannot be written, e.g. because the disk is full; older ones are whole.
        """
        raise_faults(violations(locals(), TRAIN_RULES))
        self.check_epochs(num_epochs)
        folder = RunFolder(save_dir, self.keep_last, self.tensorboard)
        self._prepare(folder, num_epochs, resume)
        try:
            self._train(num_epochs, folder, began)
        finally:
            if self.main:
                folder.close()
        return self.run.progress.history

    def check_epochs(self, num_epochs: int) -> None:
        """Raise ValueError if the warm-up leaves nothing of `num_epochs`."""
        if self.warmup_epochs >= num_epochs:
            raise ValueError(
                f"warmup_epochs must be less than num_epochs, {num_epochs}, got {self.warmup_epochs}"
            )

    def _prepare(self, folder: RunFolder, num_epochs: int, resume: str | os.PathLike[str] | None) -> None:
        """Restore the run if it goes on, and find out whether the folder can be written."""
        trained = self.run.has_trained()
        if resume is None and trained:
            raise ValueError("resume must be 'auto' or a path for a trainer that has trained, got None")
        path, state = folder.find(resume) or (None, None)
        if path is not None and state is not None:
            self.run.restore(path, state)
            self.run.progress.best = max(self.run.progress.best, folder.best_score(path))
        elif trained:
            raise ValueError(
                f"save_dir must hold a checkpoint for a trainer that has trained, got {str(folder.path)!r}"
            )
        else:
            self.run.progress = Progress()
        self.run.optimizer.zero_grad()  # a step that failed leaves its gradients
        progress = self.run.progress
        begun = progress.epoch + (progress.step > 0)
        if num_epochs < begun:
            raise ValueError(f"num_epochs must be at least {begun}, the epochs begun, got {num_epochs}")
        if length(self.run.batches) == 0:
            raise ValueError("batches must give at least one batch an epoch, got none")
        self.accelerator.wait_for_everyone()  # no process writes while others still read
        state = state or self.run.state()
        if self.main:
            folder.prepare(path, state)  # a full disk shows now

    def _train(self, num_epochs: int, folder: RunFolder, began: Callable[[], None] | None) -> None:
        progress = self.run.progress
        took = False

        def take() -> None:
            """The run works: the folder becomes its own, if it is not yet."""
            nonlocal took
            if self.main and not took:
                if began is not None:
                    began()
                folder.take(progress.history)
            took = True

        if self.shows_progress and self.lr_per is not None:
            print(f"train: lr is {self.lr:.4g} for {self.images} images in a step", file=sys.stderr)
        bar = progress_bar(
            desc="train",
            unit="epoch",
            total=num_epochs,
            initial=progress.epoch,
            disable=not self.shows_progress,
        )
        schedule = cosine_schedule(self.run.optimizer, num_epochs, self.warmup_epochs, self.lr, self.min_lr)
        with bar, delayed_interrupts() as stop_requested:
            self.scoring.score_resumed(folder, num_epochs, take)
            while progress.epoch < num_epochs:
                schedule.step(progress.epoch)
                losses = self.epoch.train(stop_requested, take)
                if losses is None:
                    if took:
                        self.scoring.save(folder.save)
                    return
                line = {"epoch": progress.epoch + 1, **self._rates(), **losses}
                self.scoring.finish_epoch(folder, line, num_epochs)
                bar.set_postfix(loss=f"{line['total_loss']:.3f}", refresh=False)
                bar.update()
            take()  # also if all epochs were done before

    def _rates(self) -> dict[str, float]:
        """The learning rate, and that of the loss weights if it is another."""
        *groups, weights = self.run.optimizer.param_groups
        rates = {"lr": group_lr(groups[-1])}
        return rates | ({"loss_weights_lr": weights["lr"]} if "lr_scale" in weights else {})
