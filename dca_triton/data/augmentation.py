"""Stronger augmentation: timm's RandAugment on photos, torchvision's MixUp and CutMix on batches.

All draws follow from PyTorch's CPU generator, so that a resumed run sees the same photos.
"""

import random
import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import rand_augment_transform
from torchvision.transforms import v2

from ..arguments import raise_faults, shown

POLICY = re.compile(r"rand(-((m|n|p|mstd|mmax|inc)\d+(\.\d+)?|t\w+))*")


class RandAugment:
    """timm's RandAugment (Cubuk et al., 2020) of a PIL image.

    timm draws from the generators of `random` and NumPy. Both are seeded by PyTorch's here, and afterward set
    back.

    Args:
        policy: As timm has it, e.g. "rand-m9-mstd0.5-inc1" of DeiT's recipe.
        size: Pixels of the image's smaller side, for translations.
        mean: Per channel in [0, 1], for pixels that nothing covers.

    Raises:
        ValueError: A policy that timm does not know.
    """

    def __init__(self, policy: str, size: int, mean: Sequence[float]) -> None:
        self.policy = policy
        fill = tuple(min(255, round(255 * channel)) for channel in mean)
        fault = f"rand_augment must be a policy of timm such as 'rand-m9-mstd0.5-inc1', got {shown(policy)}"
        # timm passes over parts that it does not know.
        if not isinstance(policy, str) or not POLICY.fullmatch(policy):
            raise_faults([fault])
        try:
            self.transform = rand_augment_transform(
                policy, {"translate_const": int(0.45 * size), "img_mean": fill}
            )
        except Exception as error:  # timm asserts, and converts parts of the text to numbers
            raise ValueError(fault) from error

    def __call__(self, image: Image.Image) -> Image.Image:
        kept = random.getstate(), np.random.get_state()  # noqa: NPY002, what timm draws from
        seed = int(torch.randint(2**32, ()))
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            return self.transform(image)
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002

    def __repr__(self) -> str:
        return f"RandAugment({self.policy!r})"


def mixing(mixup: float, cutmix: float, num_classes: int) -> v2.Transform | None:
    """torchvision's MixUp and CutMix with these parameters of their Beta distributions; None if both are 0.

    Images (B, C, h, w) and labels (B,) become mixed images and probabilities of classes (B, K). With both
    transforms, each batch gets one of them at random.
    """
    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen else None
