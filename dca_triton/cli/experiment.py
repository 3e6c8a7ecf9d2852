"""From options to photos, batches, a model and its scores."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import Tensor
from torch.utils.data import DataLoader

from ..arguments import optional, raise_faults, violations
from ..branches import BRANCHES, Task
from ..data import ImageDataset, Splits, fgvc_test, fgvc_train, load_dataset, reid_test, reid_train
from ..description import Description
from ..evaluation import evaluate_fgvc, evaluate_reid
from ..evaluation.expansion import VALUE_RULES as EXPANSION
from ..evaluation.scores import PREDICTIONS, RETRIEVAL
from ..model import DualAttentionModel
from ..model.side_information import KINDS
from ..training import training_loader
from .options import VALUE_RULES, DataOptions

Transform = Callable[[Any], Tensor]


def load_splits(data: DataOptions, backbone_name: str) -> Splits:
    """The dataset with the paper's transforms, normalized as the backbone was pretrained.

    Raises:
        FileNotFoundError, ValueError: As `load_dataset`; options outside their range, every reason at once.
    """
    raise_faults(violations(vars(data), VALUE_RULES))
    splits = load_dataset(
        data.name,
        data.root,
        holdout=data.holdout,
        seed=data.seed,
        on_corrupt=data.on_corrupt,
        gallery_seed=data.gallery_seed,
    )
    raise_faults(_faults(data, splits.task))
    mean, std = normalization(backbone_name, data)
    assert splits.train is not None
    splits.train.transform = train_transform(data, splits.task, mean, std)
    for part in (splits.validation, splits.test, splits.query, splits.gallery):
        if part is not None:
            part.transform = evaluation_transform(splits.task, data.size, mean, std, center_of(data))
    return splits


def normalization(
    backbone_name: str, data: DataOptions | None = None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation (3,) of the options; by default those that the backbone was pretrained with.

    They are ImageNet's for a backbone that was not.
    """
    pretrained = get_pretrained_cfg(backbone_name)
    own = (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return own if data is None else (data.mean or own[0], data.std or own[1])


def center_of(data: DataOptions) -> int | None:
    """The side from which evaluation of categories crops the center; None if it resizes only."""
    return data.resize if data.test_crop == "center" else None


def train_transform(data: DataOptions, task: Task, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The paper's augmentation for a task."""
    if task == "reid":
        return reid_train(data.size, mean=mean, std=std)
    return fgvc_train(data.resize, data.size[0], mean, std, data.rand_augment, data.erase)


def evaluation_transform(
    task: Task,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: int | None = None,
) -> Transform:
    """The preprocessing in evaluation; `size` is (height, width) in pixels, `resize` as in `fgvc_test`."""
    return reid_test(size, mean=mean, std=std) if task == "reid" else fgvc_test(size[0], mean, std, resize)


def train_batches(splits: Splits, data: DataOptions) -> DataLoader:
    """Shuffled batches of categories, or batches of identities that suit batch-hard triplets."""
    photos = data.photos if splits.task == "reid" else 0
    assert splits.train is not None
    return training_loader(splits.train, data.batch_size, photos, data.workers, data.seed)


def evaluation_batches(dataset: ImageDataset | None, data: DataOptions) -> DataLoader:
    """Every photo of a part once, in its order."""
    if dataset is None:
        raise ValueError(f"--data.name must be a dataset with photos to score, got {data.name!r} without any")
    return DataLoader(dataset, data.batch_size, num_workers=data.workers)


def build_model(splits: Splits, data: DataOptions, options: dict[str, Any]) -> DualAttentionModel:
    """A model for the dataset's classes, size, cameras and views.

    `options` are `DualAttentionModel`'s other arguments, and whether it has embeddings of cameras and views.
    """
    own = dict(options)
    for kind in KINDS:
        if own.pop(f"{kind[:-1]}_embedding", False):
            own[kind] = numbers_of(splits, kind)
    try:
        model = DualAttentionModel(
            num_classes=len(splits.classes), task_type=splits.task, img_size=data.size, **own
        )
    except TypeError as error:  # a name that does not exist, or that the data give
        raise ValueError(f"model must hold arguments of DualAttentionModel, got others ({error})") from error
    if model.backbone.in_chans != 3:
        raise ValueError(f"--model.timm.in_chans must be 3, as photos have, got {model.backbone.in_chans}")
    return model


def numbers_of(splits: Splits, kind: str) -> list[int]:
    """The numbers of the "cameras" or "views" of the training photos.

    Raises:
        ValueError: None of them is known.
    """
    assert splits.train is not None
    numbers = sorted({number for number in getattr(splits.train, kind).tolist() if number >= 0})
    if not numbers:
        raise ValueError(
            f"--model.{kind[:-1]}_embedding must be false for {splits.dataset}, whose {kind} are unknown, "
            "got true"
        )
    return numbers


def warn_of_unknown(model: DualAttentionModel, *parts: ImageDataset | None) -> None:
    """Say how many photos have no embedding of their camera or view, in a model that has some."""
    for kind in KINDS:
        if model.sie is None or not model.sie.knows(kind):
            continue
        known = set(model.sie.get_buffer(kind).tolist())
        found = [number for part in parts if part is not None for number in getattr(part, kind).tolist()]
        others = [number for number in found if number not in known]
        if others:
            unseen = ", ".join(map(str, sorted({number for number in others if number >= 0})))
            which = f"{kind} {unseen} were not in training" if unseen else f"their {kind} are unknown"
            count = f"{len(others)} of {len(found)} photos"
            warnings.warn(f"{count} get the mean of the embeddings of {kind}: {which}", stacklevel=2)


def describe(splits: Splits, data: DataOptions, backbone_name: str) -> Description:
    """What the run's checkpoints say of themselves, and what must stay when it is resumed."""
    mean, std = normalization(backbone_name, data)
    return Description(
        task=splits.task,
        classes=splits.classes,
        size=data.size,
        mean=tuple(mean),
        std=tuple(std),
        dataset=data.name,
        resize=data.resize,
        batch_size=data.batch_size,
        photos=data.photos,
        holdout=data.holdout,
        seed=data.seed,
        test_crop=data.test_crop,
    )


def scored_parts(splits: Splits) -> tuple[str, ...]:
    """The parts that `scores` scores."""
    if splits.task == "reid":
        return "query", "gallery"
    return ("validation",) if splits.validation else ("test",)


def scored_part(splits: Splits) -> str:
    """Which photos `scores` scores, in words: "query and gallery of MSMT17_V1"."""
    return f"{' and '.join(scored_parts(splits))} of {splits.dataset}"


def check_score(option: str, name: str | None, task: Task, branches: Sequence[str] | None) -> None:
    """Raise ValueError unless `name` is None or one of the scores in [0, 1] of the task and the branches."""
    scored = [branch for branch in PREDICTIONS if branch == "sum" or branch in (branches or BRANCHES)]
    names = [f"{branch}_top{k}" for branch in scored for k in (1, 5)] if task == "fgvc" else [*RETRIEVAL]
    if name is not None and name not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, got {name!r}")


def reid_options(task: Task, **options: Any) -> dict[str, Any]:
    """Those of Re-ID's options that were given, which are not None; raise ValueError if it is not Re-ID."""
    asked = {name: value for name, value in options.items() if value is not None}
    if asked and task != "reid":
        raise ValueError(f"--{' and --'.join(asked)} must not be given for categories, got {asked}")
    return asked


def check_expansion(expand: int | None, alpha: float | None) -> None:
    """Raise ValueError unless query expansion can be done so, or is not asked for."""
    rules = {"--expand": optional(EXPANSION["k"]), "--alpha": optional(EXPANSION["alpha"])}
    faults = violations({"--expand": expand, "--alpha": alpha}, rules)
    if alpha is not None and expand is None:
        faults.append("--expand must be given with --alpha, got none")
    raise_faults(faults)


def scores(
    model: DualAttentionModel,
    splits: Splits,
    data: DataOptions,
    progress: bool = True,
    flip: bool = False,
    **options: Any,
) -> dict[str, float]:
    """The task's scores in [0, 1] on the validation photos if some are held out, else on the test part.

    `flip` averages over each photo and its mirror image; `options` go to `evaluate_reid`.
    """
    if splits.task == "fgvc":
        photos = splits.validation or splits.test
        return evaluate_fgvc(model, evaluation_batches(photos, data), progress, flip)
    query, gallery = evaluation_batches(splits.query, data), evaluation_batches(splits.gallery, data)
    return evaluate_reid(model, query, gallery, progress=progress, flip=flip, **options)


def _faults(data: DataOptions, task: Task) -> list[str]:
    faults = []
    if task == "reid":
        if data.batch_size % data.photos:
            faults.append(
                f"--data.batch_size must be a multiple of photos={data.photos}, got {data.batch_size}"
            )
        if data.test_crop != "resize":
            faults.append(f"--data.test_crop must be 'resize' for identities, got {data.test_crop!r}")
        if data.rand_augment is not None:
            faults.append(f"--data.rand_augment must be null for identities, got {data.rand_augment!r}")
        if data.erase:
            faults.append(f"--data.erase must be 0 for identities, got {data.erase}")
        return faults
    if data.size[0] != data.size[1]:
        faults.append(f"--data.size must be a square for categories, got {data.size}")
    if data.resize < max(data.size):
        faults.append(f"--data.resize must be at least size, {max(data.size)}, got {data.resize}")
    return faults
