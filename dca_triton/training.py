"""A trainer to read from top to bottom: batches, pairs, three losses, one optimizer, a checkpoint."""

import json
import math
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import save_checkpoint
from .evaluation import Batch
from .losses import BranchLoss, UncertaintyWeightedLoss
from .model import DualAttentionModel
from .pairs import PairSampler

Augment = Callable[[Tensor, torch.Generator], Tensor]


class DualAttentionTrainer:
    """Trains SA, GLCA and PWCA together with learnt loss weights.

    Args:
        model: On the device to train on.
        batches: An iterable of dicts with "image" (B, 3, h, w) and "label" (B,), iterated once an epoch.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate, above 0.
        weight_decay: At least 0; not on the loss weights.
        warmup_epochs: Epochs of linear warm-up before the cosine, at least 0.
        label_smoothing: In [0, 1).
        pairs: Which image of the batch distracts which; random by default.
        evaluate: Called after the last epoch and every `evaluate_every` epochs; its scores go to the metrics.
        evaluate_every: Epochs between evaluations, at least 1; 0 evaluates after the last epoch only.
        augment: Applied to the whole batch on the model's device.
        clip_grad: Largest gradient norm; None leaves gradients as they are.
        seed: Of pairs and augmentation.
        progress: Show a progress bar.
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
    ) -> None:
        self.model = model
        self.batches = batches
        self.warmup_epochs = warmup_epochs
        self.pairs = pairs or PairSampler()
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.augment = augment
        self.clip_grad = clip_grad
        self.progress = progress
        self.device = next(model.parameters()).device
        self.branch_loss = BranchLoss(model.task_type, label_smoothing)
        self.weighting = UncertaintyWeightedLoss().to(self.device)
        self.optimizer = _optimizer(optimizer, model, self.weighting, lr, weight_decay)
        self.pair_generator = torch.Generator(self.device).manual_seed(seed)
        self.augment_generator = torch.Generator(self.device).manual_seed(seed)
        self.history: list[dict[str, float]] = []

    def train(self, num_epochs: int, save_dir: str | Path) -> list[dict[str, float]]:
        """Train, writing metrics.jsonl (a line an epoch) and checkpoint.pt to `save_dir`; returns the lines.

        Raises:
            ValueError: num_epochs below 1, or no batches.
            RuntimeError: A loss that is not finite, with the epoch, the step and the batch's files.
        """
        if num_epochs < 1:
            raise ValueError(f"num_epochs is {num_epochs}; allowed is at least 1")
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: _cosine(epoch, num_epochs, self.warmup_epochs)
        )
        with (save_dir / "metrics.jsonl").open("w") as log:
            bar = tqdm(range(1, num_epochs + 1), desc="train", unit="epoch", disable=not self.progress)
            for epoch in bar:
                line = {"epoch": epoch, "lr": scheduler.get_last_lr()[0], **self._epoch(epoch)}
                scheduler.step()
                last = epoch == num_epochs
                if self.evaluate and (last or (self.evaluate_every and epoch % self.evaluate_every == 0)):
                    line |= self.evaluate()
                self.history.append(line)
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{line['total_loss']:.3f}")
        save_checkpoint(save_dir / "checkpoint.pt", self.state(num_epochs))
        return self.history

    def state(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint holds, under the reference's names."""
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "uncertainty_loss_state_dict": self.weighting.state_dict(),
            "epoch": epoch,
            "history": self.history,
        }

    def _epoch(self, epoch: int) -> dict[str, float]:
        self.model.train()
        sums: dict[str, Tensor] = {}
        steps = len(self.batches) if isinstance(self.batches, Sized) else None
        done = 0
        for batch in tqdm(self.batches, total=steps, leave=False, disable=not self.progress or steps == 1):
            losses = self._step(batch, f"epoch {epoch}, step {done}")
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss
            done += 1
        if not done:
            raise ValueError("batches is empty; training needs at least one batch an epoch")
        return {
            name: float(total) / done for name, total in sums.items()
        } | self.weighting.get_current_weights()

    def _step(self, batch: Batch, where: str) -> dict[str, Tensor]:
        images, labels = batch["image"].to(self.device), batch["label"].to(self.device)
        if self.augment:
            images = self.augment(images, self.augment_generator)
        features = self._pair_features(images)
        partner_index = self.pairs(labels, features, self.pair_generator)
        outputs = self.model(images, partner_index=partner_index, class_tokens_only=True)
        losses = self.branch_loss(outputs, labels)
        total = self.weighting(losses)["total_loss"]
        if not math.isfinite(total.item()):
            files = ", ".join(map(str, batch.get("path", ["unknown files"])))
            raise RuntimeError(f"the loss is {total.item()} at {where}; the batch holds {files}")
        self.optimizer.zero_grad()
        total.backward()
        if self.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        return {"total_loss": total.detach(), **{f"{b}_loss": loss.detach() for b, loss in losses.items()}}

    def _pair_features(self, images: Tensor) -> Tensor | None:
        """Features to find hard negatives by: the class tokens of an evaluation pass."""
        if self.pairs.strategy == "random":
            return None
        self.model.eval()
        features = self.model.extract_features(images)
        self.model.train()
        return features


def _optimizer(
    name: str, model: DualAttentionModel, weighting: UncertaintyWeightedLoss, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay},
        {"params": list(weighting.parameters()), "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if name not in kinds:
        raise ValueError(f"optimizer is {name!r}; allowed are 'adam', 'adamw' and 'sgd'")
    return kinds[name](groups, lr=lr)


def _cosine(epoch: int, epochs: int, warmup: int) -> float:
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
