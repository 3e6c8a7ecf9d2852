"""The gradient of one training step: augmentation, pairs, forward and backward, in one process or in many."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data.records import Batch
from ..model import DualAttentionModel
from .loader import seed_of
from .losses import BranchLoss, UncertaintyWeightedLoss
from .pairs import PairSampler

Augment = Callable[[Tensor, torch.Generator], Tensor]
Sides = dict[str, Tensor]  # cameras and views (B,), for a model with embeddings of them
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(kw_only=True)
class Objective:
    """The objective of a training step, under Accelerate.

    All randomness of a step depends only on (seed, epoch, step, process), so no generator state has to be
    kept between steps, and nothing that happens between steps can change it.

    Attributes:
        accelerator: The accelerator of this process.
        model: The model to evaluate.
        parallel: The model to train: `model` itself or a wrapper that joins the gradients of the processes.
        weighting: Weights the losses of the branches; on the device.
        branch_loss: The loss of one branch.
        pairs: Chooses each image's distractor.
        augment: Applied to a whole batch on the device, or None.
        mix: Mixes images (B, 3, h, w) and labels (B,), which become (B, K), or None.
        gather_partners: Take distractors from the images of all processes.
        seed: Seeds everything random.
    """

    accelerator: Accelerator
    model: DualAttentionModel
    parallel: nn.Module
    weighting: UncertaintyWeightedLoss
    branch_loss: BranchLoss
    pairs: PairSampler
    augment: Augment | None
    mix: Mix | None
    gather_partners: bool
    seed: int

    def backward(self, group: Sequence[Batch], images: int, epoch: int, step: int) -> dict[str, Tensor]:
        """Compute the gradient of the mean over all `images` images of the step, in all processes.

        Args:
            group: The batches of this process; every process has the same number of them.
            images: Images in the groups of all processes.
            epoch: From 0.
            step: Within the epoch, from 0.

        Returns:
            total_loss and the loss of each branch, detached; their means over the processes are those of the
            joint batch.
        """
        sums: dict[str, Tensor] = {}
        with torch.random.fork_rng(
            [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        ):
            place = (self.seed, epoch, step, self.accelerator.process_index)
            torch.manual_seed(seed_of(*place, 0))
            own = torch.Generator(self.accelerator.device).manual_seed(seed_of(*place, 1))
            common = torch.Generator(self.accelerator.device).manual_seed(seed_of(self.seed, epoch, step, 2))
            for number, batch in enumerate(group, start=1):
                share = len(batch["label"]) * self.accelerator.num_processes / images
                joins = number == len(group)
                with nullcontext() if joins else self.accelerator.no_sync(self.parallel):
                    losses = self._losses(batch, own, common)
                    self.accelerator.backward(share * losses["total_loss"])
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0) + share * loss.detach()
        for weight in (*self.weighting.parameters(), *self.branch_loss.parameters()):  # not in `parallel`
            weight.grad = self.accelerator.reduce(weight.grad, "mean")
        return sums

    def nonfinite(self, loss: Tensor, group: Sequence[Batch]) -> str:
        """Describe the losses that are not finite in any process, with their files; "" if all are finite.

        In one process, this is the only place in a step where the host waits for the device, but for the
        scaling of gradients in fp16.
        """
        if not self.accelerator.reduce((~loss.isfinite()).float()).item():
            return ""
        files = [str(path) for batch in group for path in batch.get("path", ["unknown files"])]
        losses = gather_object([(loss.item(), files)])
        return "; ".join(
            f"the loss is {value}; the batch holds {', '.join(names)}"
            for value, names in losses
            if not math.isfinite(value)
        )

    def _losses(self, batch: Batch, own: torch.Generator, common: torch.Generator) -> dict[str, Tensor]:
        images = batch["image"].to(self.accelerator.device, non_blocking=True)
        labels = torch.as_tensor(batch["label"]).to(self.accelerator.device, non_blocking=True)
        if self.augment:
            images = self.augment(images, own)
        images, targets = self.mix(images, labels) if self.mix else (images, labels)
        sides = self.model.sides_of(batch)
        pair = self._pair(images, labels, sides, own, common) if "pwca" in self.model.branches else {}
        outputs = self.parallel(images, **pair, class_tokens_only=True, **sides)
        losses = self.branch_loss(outputs, targets)
        total = self.weighting(losses)["total_loss"]
        return {"total_loss": total, **{f"{branch}_loss": loss for branch, loss in losses.items()}}

    def _pair(
        self, images: Tensor, labels: Tensor, sides: Sides, own: torch.Generator, common: torch.Generator
    ) -> dict[str, Tensor]:
        """The model's arguments that give each image its distractor."""
        features = self._features(images, sides)
        if self.gather_partners and self.accelerator.num_processes > 1:
            return self._distractors(images, labels, sides, features, common)
        return {"partner_index": self.pairs(labels, features, own)}

    def _features(self, images: Tensor, sides: Sides) -> Tensor | None:
        """Features of an evaluation pass for hard negatives; None if the strategy does not need them."""
        if self.pairs.strategy == "random":
            return None
        # The weights change in each step, so a cached row would never be met again.
        cache, self.model.cache = self.model.cache, None
        self.model.eval()
        try:
            return self.model.extract_features(images, **sides)
        finally:
            self.model.train()
            self.model.cache = cache

    def _distractors(
        self,
        images: Tensor,
        labels: Tensor,
        sides: Sides,
        features: Tensor | None,
        common: torch.Generator,
    ) -> dict[str, Tensor]:
        """Each image's distractor (B, 3, h, w) from the images of all processes, with its own sides."""
        counts = self.accelerator.gather(torch.tensor([len(images)], device=self.accelerator.device)).tolist()
        if features is not None:
            features = self._joined(features, counts)
        index = self.pairs(self._joined(labels, counts), features, common)
        first = sum(counts[: self.accelerator.process_index])
        chosen = index[first : first + len(images)]
        others = {f"pair_{kind}": self._joined(own, counts)[chosen] for kind, own in sides.items()}
        return {"x_pair": self._joined(images, counts)[chosen], **others}

    def _joined(self, rows: Tensor, counts: list[int]) -> Tensor:
        padded = self.accelerator.pad_across_processes(rows)
        parts = self.accelerator.gather(padded).split(max(counts))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
