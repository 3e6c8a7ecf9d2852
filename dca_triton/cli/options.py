"""Options of the commands, as plain values: a training run's, and those that choose a trained model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..arguments import Rule, choice, integer, number, optional


def _up_to(most: int, least: int = 1) -> Rule:
    """An integer in [least, most]. A larger one would exhaust the machine before an error could say why."""
    fits, _ = integer(least)
    return lambda v: fits(v) and v <= most, f"an integer in [{least}, {most}]"


MOST_PIXELS = 2**13  # of a side
_side, _ = _up_to(MOST_PIXELS)


def _channels(fits: Callable[[float], bool], words: str) -> Rule:
    """Three numbers that fit, one for each channel, or None."""
    of_one, _ = number(fits, words)
    return optional((lambda v: isinstance(v, tuple) and len(v) == 3 and all(map(of_one, v)), words))


VALUE_RULES: dict[str, Rule] = {
    "size": (
        lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(_side, v)),
        f"a height and a width in [1, {MOST_PIXELS}]",
    ),
    "resize": _up_to(MOST_PIXELS),
    "test_crop": choice("center", "resize"),
    "mean": _channels(lambda v: True, "3 finite numbers"),
    "std": _channels(lambda v: v > 0, "3 finite numbers > 0"),
    "erase": number(lambda v: 0 <= v <= 1, "in [0, 1]"),
    "batch_size": _up_to(2**20),
    "photos": _up_to(2**20),
    "holdout": integer(0),
    "workers": _up_to(2**10, least=0),
    "seed": _up_to(2**63 - 1, least=0),
    "gallery_seed": _up_to(2**63 - 1, least=0),
}


@dataclass(frozen=True)
class DataOptions:
    """The photos and how they become batches.

    Args:
        name: cub, nabirds, cars, dogs, aircraft, folder, orl-fgvc (fine-grained categories); market1501,
            dukemtmc (which its authors withdrew), occluded-duke, msmt17, cuhk03-detected, cuhk03-labeled,
            veri776, vehicleid-800, vehicleid-1600, vehicleid-2400, orl-reid (re-identification); a folder
            with query and gallery parts is for re-identification, too.
        root: The folder that the dataset's archive unpacks to; orl-* need none.
        size: Height and width in pixels of the model's input; a square for categories.
        resize: Training resizes a photo to a square of this side in pixels and crops `size` from it; at least
            the side of `size`; for categories.
        test_crop: How evaluation makes a photo as large as `size`: "resize" resizes the whole photo; "center"
            resizes it to a square of side `resize` and crops the center, so that objects are as large as in
            training; for categories.
        mean: Mean of each channel in [0, 1], for normalization; by default that of the backbone's
            pretraining.
        std: Standard deviation of each channel, for normalization; by default as for `mean`.
        rand_augment: A policy of timm's RandAugment for training, e.g. "rand-m9-mstd0.5"; for categories.
        erase: Probability that training erases a random rectangle, in [0, 1]; for categories. For identities
            it is always 0.5.
        batch_size: Photos in a batch of each process. For identities, a training batch has `photos` photos of
            each of batch_size / photos identities.
        photos: Photos of one identity in a batch, a divisor of batch_size; for identities.
        holdout: Photos of each class that are kept from training for validation; for categories.
        on_corrupt: At an unreadable photo, training stops ("raise"), or takes another photo and counts it
            ("skip").
        workers: Processes that decode photos; with 0, the main process decodes.
        seed: Seeds the order of the batches and the choice of the photos that are held out.
        gallery_seed: Seeds the choice of the gallery of vehicleid-*.
    """

    name: str
    root: Path | None = None
    size: tuple[int, int] = (448, 448)
    resize: int = 550
    test_crop: Literal["center", "resize"] = "resize"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    rand_augment: str | None = None
    erase: float = 0.0
    batch_size: int = 16
    photos: int = 4
    holdout: int = 0
    on_corrupt: Literal["raise", "skip"] = "raise"
    workers: int = 2
    seed: int = 0
    gallery_seed: int = 0


@dataclass(frozen=True)
class DataChanges:
    """The photos and their preprocessing. An option that is not given is as in training.

    Args:
        name: The dataset, with the names of `dca-triton train`.
        root: The folder that the dataset's archive unpacks to.
        size: Height and width in pixels; they must be the model's.
        resize: With `test_crop` "center", the side in pixels of the square that is cropped.
        test_crop: How a photo is made as large as `size`: "resize" or "center", as in `dca-triton train`.
        mean: As in training, for a checkpoint that does not hold it.
        std: As in training, for a checkpoint that does not hold it.
        batch_size: Photos in a batch.
        holdout: Photos of each class that training held out; 0 scores the test part instead.
        workers: Processes that decode photos; with 0, the main process decodes.
        seed: As in training, for a checkpoint that does not hold it.
        gallery_seed: Seeds the choice of the gallery of vehicleid-*.
    """

    name: str | None = None
    root: Path | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    test_crop: Literal["center", "resize"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    batch_size: int | None = None
    holdout: int | None = None
    workers: int | None = None
    seed: int | None = None
    gallery_seed: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A training run: the options of its config.

    Args:
        model: Arguments of `DualAttentionModel` except the classes, the task and the size, which follow from
            the data.
        data: The photos.
        trainer: Arguments of `DualAttentionTrainer` except the model, the batches and the pairs.
        pairs: Arguments of `PairSampler`.
        epochs: Epochs to train in all, >= 1.
        output: The run's folder.
        transfer: A checkpoint; training starts from its weights that fit.
        seed: Seeds the initial weights, batches, pairs and augmentation.
    """

    model: dict[str, Any]
    data: DataOptions
    trainer: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    output: Path = Path("runs/train")
    transfer: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Selection:
    """The trained model that a command uses, and the options that it overrides.

    Args:
        run: The folder of a run or of an exported model.
        weights: A checkpoint to use instead of the run's newest.
        model: Arguments of `DualAttentionModel` that override the checkpoint's.
        data: Fields of `DataOptions` that override the run's.
        recorded_model: Arguments that the run's config.yaml gives, for checkpoints without their own.
        recorded_data: Fields of `DataOptions` that the run's config.yaml gives.
    """

    run: Path | None = None
    weights: Path | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    recorded_model: Mapping[str, Any] = field(default_factory=dict)
    recorded_data: Mapping[str, Any] = field(default_factory=dict)

    def changed(self) -> dict[str, Any]:
        """The overridden options that scores depend on: arguments of the model and the data."""
        speed = ("batch_size", "workers")
        data = {name: value for name, value in self.data.items() if name not in speed}
        sections = {"model": dict(self.model), "data": data}
        return {name: values for name, values in sections.items() if values}
