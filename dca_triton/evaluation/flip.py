"""Flip averaging: what a model says of a photo and of its mirror image, averaged."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..model import DualAttentionModel


def flip_averaged(model: DualAttentionModel) -> DualAttentionModel:
    """Return a model for `embed`, `evaluate_fgvc` and `evaluate_reid` that also sees the mirror images.

    Its features are the mean of those of the photo and of its mirror image (as in TransReID's code). Its
    logits give the mean of the two probabilities. It shares the model's weights and takes twice the time.
    """
    return cast(DualAttentionModel, _FlipAveraged(model))


class _FlipAveraged(nn.Module):
    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__()
        self.model = model

    def sides_of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.model.sides_of(batch)

    def extract_features(self, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen = (self.model.extract_features(x, *arguments, **options).float() for x in _both(images))
        return torch.stack(list(seen)).mean(0)

    def forward(self, images: Tensor, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        photo, mirrored = (self.model(x, *arguments, **options) for x in _both(images))
        return {
            name: torch.stack([logits.float().softmax(1), mirrored[name].float().softmax(1)]).mean(0).log()
            for name, logits in photo.items()
            if name.endswith("_logits")
        }


def _both(images: Tensor) -> tuple[Tensor, Tensor]:
    return images, images.flip(-1)
