"""The paper's transforms (Zhu et al., CVPR 2022, section 4.1) in torchvision v2, and one for whole batches.

The first four take an RGB photo and return a normalized float32 tensor (3, height, width). `mean` and `std`
are per channel in [0, 1] units; pass the backbone's own (timm: `model.pretrained_cfg`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from ..arguments import number, raise_faults, violations
from ..tensor_arguments import tensor_violations
from .augmentation import RandAugment

PerChannel = Sequence[float]


def fgvc_train(
    resize: int = 550,
    crop: int = 448,
    mean: PerChannel = IMAGENET_DEFAULT_MEAN,
    std: PerChannel = IMAGENET_DEFAULT_STD,
    rand_augment: str | None = None,
    erase: float = 0.0,
) -> v2.Compose:
    """Resize to a square, crop a random one, flip half of the time.

    Args:
        resize: Pixels of the square's side.
        crop: Pixels of the crop's side.
        mean: Per channel.
        std: Per channel.
        rand_augment: A policy of timm's RandAugment (see `RandAugment`), applied after the flip.
        erase: Probability of erasing a random rectangle, in [0, 1].
    """
    faults = [f"crop must be at most resize, {resize}, got {crop}"] if crop > resize else []
    raise_faults(faults + violations({"erase": erase}, {"erase": number(lambda v: 0 <= v <= 1, "in [0, 1]")}))
    augment = [] if rand_augment is None else [RandAugment(rand_augment, crop, mean)]
    erasing = [v2.RandomErasing(erase, value="random")] if erase else []
    crop_and_flip = [_resize((resize, resize)), v2.RandomCrop(crop), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop_and_flip, *augment, *_tensor(mean, std), *erasing])


def fgvc_test(
    size: int = 448,
    mean: PerChannel = IMAGENET_DEFAULT_MEAN,
    std: PerChannel = IMAGENET_DEFAULT_STD,
    resize: int | None = None,
) -> v2.Compose:
    """Resize to a square; with `resize`, to a square of that side, and crop `size` from its center.

    With the `resize` of training, objects appear as large as in training, where `fgvc_train` crops.
    """
    if resize is None:
        return v2.Compose([_resize((size, size)), *_tensor(mean, std)])
    if size > resize:
        raise_faults([f"size must be at most resize, {resize}, got {size}"])
    return v2.Compose([_resize((resize, resize)), v2.CenterCrop(size), *_tensor(mean, std)])


def reid_train(
    size: tuple[int, int] = (256, 128),
    padding: int = 10,
    mean: PerChannel = IMAGENET_DEFAULT_MEAN,
    std: PerChannel = IMAGENET_DEFAULT_STD,
) -> v2.Compose:
    """Resize to (height, width), flip, pad, crop at random, and erase a random rectangle half of the time."""
    return v2.Compose(
        [
            _resize(size),
            v2.RandomHorizontalFlip(),
            v2.Pad(padding),
            v2.RandomCrop(size),
            *_tensor(mean, std),
            v2.RandomErasing(p=0.5, value="random"),
        ]
    )


def reid_test(
    size: tuple[int, int] = (256, 128),
    mean: PerChannel = IMAGENET_DEFAULT_MEAN,
    std: PerChannel = IMAGENET_DEFAULT_STD,
) -> v2.Compose:
    """Resize to (height, width)."""
    return v2.Compose([_resize(size), *_tensor(mean, std)])


def whole_batch_affine(
    images: Tensor,
    generator: torch.Generator,
    rotation: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.1,
    flip: bool = True,
) -> Tensor:
    """Rotate, scale, shift and flip each image of a batch by its own amounts, in one resampling.

    The result has the shape and dtype of `images`. Outside an image its border repeats. The same state of
    `generator` gives the same result.

    Args:
        images: (B, channels, height, width), floating-point.
        generator: Draws all amounts, uniformly.
        rotation: Angles lie in +-`rotation` degrees.
        scale: Factors lie in 1 +- `scale`, which is in [0, 1).
        shift: Shifts lie in +-`shift` of each side.
        flip: Flip half of the images left to right.

    Raises:
        ValueError: Other shapes, dtypes or ranges, every reason at once.
    """
    raise_faults(
        tensor_violations({"images": images}, {"images": "floating-point (B, C, h, w)"})
        + violations({"scale": scale}, {"scale": number(lambda v: 0 <= v < 1, "a number in [0, 1)")})
    )
    batch, _, height, width = images.shape
    uniform = torch.rand(5, batch, generator=generator, device=generator.device).to(images.device) * 2 - 1
    angle, factor = torch.deg2rad(uniform[0] * rotation), 1 + uniform[1] * scale
    mirror = torch.where(uniform[4] < 0, -1.0, 1.0) if flip else torch.ones_like(angle)
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # affine_grid's coordinates run over [-1, 1] on either side; without the ratio a rotation would shear.
    ratio = height / width
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin * ratio, 2 * shift * uniform[2]], dim=1),
            torch.stack([sin * mirror / ratio, cos, 2 * shift * uniform[3]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _resize(size: tuple[int, int]) -> v2.Resize:
    return v2.Resize(size, interpolation=InterpolationMode.BICUBIC)


def _tensor(mean: PerChannel, std: PerChannel) -> list[torch.nn.Module]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
        v2.ToPureTensor(),
    ]
