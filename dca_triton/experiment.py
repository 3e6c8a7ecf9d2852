"""From the options of a config to photos, batches, a model and its scores; what the commands share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import Tensor
from torch.utils.data import DataLoader

from .batches import training_loader
from .data import (
    ImageDataset,
    Splits,
    fgvc_test,
    fgvc_train,
    load_dataset,
    reid_test,
    reid_train,
)
from .evaluation import evaluate_fgvc, evaluate_reid
from .model import DualAttentionModel

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class DataOptions:
    """The photos and how they become batches.

    Args:
        name: cub, cars, aircraft, folder, orl-fgvc (fine-grained categories); market1501, dukemtmc, msmt17,
            veri776, orl-reid (re-identification); a folder with query and gallery parts is the latter, too.
        root: The dataset's own folder, the one that its archive unpacks to; absent for orl-*.
        size: Height and width in pixels that the model sees; a square for categories.
        resize: Side in pixels before training crops `size` from it, at least its side; for categories.
        batch_size: Photos in a batch of each process, at least 1; in training of identities `photos` each of
            batch_size / photos identities.
        photos: Photos of one identity in a batch, a divisor of batch_size; for identities.
        holdout: Photos of each class kept from training to validate on, at least 0; for categories.
        on_corrupt: An unreadable photo in training stops ("raise") or is replaced and counted ("skip").
        workers: Processes that decode photos; 0 decodes in this one.
        seed: Of the batches' order and of what is held out.
    """

    name: str
    root: Path | None = None
    size: tuple[int, int] = (448, 448)
    resize: int = 550
    batch_size: int = 16
    photos: int = 4
    holdout: int = 0
    on_corrupt: Literal["raise", "skip"] = "raise"
    workers: int = 2
    seed: int = 0


def load_splits(data: DataOptions, backbone_name: str) -> Splits:
    """The dataset with the paper's transforms, normalised as the backbone was pretrained.

    Raises:
        FileNotFoundError, ValueError: As `load_dataset`; options outside their range, every reason at once.
    """
    splits = load_dataset(
        data.name, data.root, holdout=data.holdout, seed=data.seed, on_corrupt=data.on_corrupt
    )
    faults = _faults(data, splits.task)
    if faults:
        raise ValueError("; ".join(faults))
    train, test = _transforms(data, splits.task, backbone_name)
    splits.train.transform = train
    for part in (splits.validation, splits.test, splits.query, splits.gallery):
        if part is not None:
            part.transform = test
    return splits


def normalisation(backbone_name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation (3,) that the backbone was pretrained with; ImageNet's for one that was not."""
    pretrained = get_pretrained_cfg(backbone_name)
    return (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def train_batches(splits: Splits, data: DataOptions) -> DataLoader:
    """Shuffled batches of categories, or batches of identities that suit batch-hard triplets."""
    photos = data.photos if splits.task == "reid" else 0
    return training_loader(splits.train, data.batch_size, photos, data.workers, data.seed)


def evaluation_batches(dataset: ImageDataset | None, data: DataOptions) -> DataLoader:
    """Every photo of a part once, in its order."""
    if dataset is None:
        raise ValueError(f"dataset {data.name} lacks the part that evaluation needs")
    return DataLoader(dataset, data.batch_size, num_workers=data.workers)


def build_model(splits: Splits, data: DataOptions, options: dict[str, Any]) -> DualAttentionModel:
    """A model for the dataset's classes and size; `options` are `DualAttentionModel`'s other arguments."""
    return DualAttentionModel(
        num_classes=len(splits.classes), task_type=splits.task, img_size=data.size, **options
    )


def scores(
    model: DualAttentionModel, splits: Splits, data: DataOptions, progress: bool = True, **options: Any
) -> dict[str, float]:
    """The task's scores in [0, 1] on the validation photos if some are held out, else on the test part.

    `options` go to `evaluate_reid`.
    """
    if splits.task == "fgvc":
        photos = splits.validation or splits.test
        return evaluate_fgvc(model, evaluation_batches(photos, data), progress=progress)
    query, gallery = evaluation_batches(splits.query, data), evaluation_batches(splits.gallery, data)
    return evaluate_reid(model, query, gallery, progress=progress, **options)


def _faults(data: DataOptions, task: str) -> list[str]:
    least = {"size": min(data.size), "batch_size": data.batch_size, "photos": data.photos}
    faults = [f"{name} is {value}; allowed is at least 1" for name, value in least.items() if value < 1]
    if data.workers < 0:
        faults.append(f"workers is {data.workers}; allowed is at least 0")
    if task == "fgvc" and data.size[0] != data.size[1]:
        faults.append(f"size is {data.size}; allowed for categories is a square")
    if task == "fgvc" and data.resize < max(data.size):
        faults.append(f"resize is {data.resize}; allowed is at least size, {max(data.size)}")
    if task == "reid" and data.photos >= 1 and data.batch_size % data.photos:
        faults.append(f"batch_size is {data.batch_size}; allowed are multiples of photos, {data.photos}")
    return faults


def _transforms(data: DataOptions, task: str, backbone_name: str) -> tuple[Transform, Transform]:
    mean, std = normalisation(backbone_name)
    if task == "reid":
        return reid_train(data.size, mean=mean, std=std), reid_test(data.size, mean=mean, std=std)
    side = data.size[0]
    return fgvc_train(data.resize, side, mean, std), fgvc_test(side, mean, std)
