"""A trained model with what its numbers mean, from a run's folder, an exported folder or a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from ..arguments import raise_faults, violations
from ..checkpoint import load_checkpoint, load_weights
from ..data import ImageDataset, Splits, load_dataset
from ..data.splits import READERS
from ..description import Description
from ..model import DualAttentionModel
from ..model.hub import RUN_CHECKPOINT, evaluation_weights
from ..process import this_process
from ..run_folder import RunFolder
from . import demo  # noqa: F401  registers the demo's backbone with timm
from .experiment import build_model, describe, evaluation_transform, load_splits
from .options import VALUE_RULES, DataOptions, Selection

PARTS = ("train", "validation", "test", "query", "gallery")
REQUIRED = "run must be the folder of a trained run (or --config the config.yaml in it), got none"


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, on this process's device, and what is known about it.

    Args:
        model: With averaged weights where its training averaged them.
        description: Its task, classes, size and normalization.
        file: Where the weights come from.
        data: The photos to score or embed.
    """

    model: DualAttentionModel
    description: Description
    file: Path
    data: DataOptions

    def transform(self) -> Any:
        """Photo to image, as evaluation sees it."""
        known = self.description
        return evaluation_transform(known.task, known.size, known.mean, known.std)

    def splits(self, training: bool = False) -> Splits:
        """The dataset for evaluation: labels are the model's, and every part has evaluation's transform.

        Args:
            training: Read the training part, too.

        Raises:
            FileNotFoundError, ValueError: As `load_dataset`; a dataset for another task, or with classes that
                the model does not know.
        """
        data, known = self.data, self.description
        raise_faults(violations(vars(data), VALUE_RULES))
        if data.root is None and data.name in READERS:
            raise ValueError(
                f"data.root must be the folder of the dataset {data.name}, got none: "
                "the run's config.yaml does not hold it"
            )
        splits = load_dataset(data.name, data.root, holdout=data.holdout, seed=data.seed, training=training)
        if splits.task != known.task:
            raise ValueError(
                f"data.name must be a dataset for the model's task, {known.task}, got {data.name!r} for "
                f"{splits.task}"
            )
        if known.task == "fgvc":
            splits = splits.with_classes(known.classes)
        transform = self.transform()

        def prepared(part: ImageDataset | None) -> Any:
            return None if part is None else part.with_transform(transform)

        return replace(splits, **{part: prepared(getattr(splits, part)) for part in PARTS})

    def part(self, name: str) -> ImageDataset:
        """One part of the dataset; raises as `splits`, and ValueError if the dataset does not have it."""
        splits = self.splits(training=name == "train")
        dataset = getattr(splits, name)
        if dataset is None:
            present = [part for part in PARTS if part == "train" or getattr(splits, part) is not None]
            raise ValueError(f"part must be one of {', '.join(present)} for {self.data.name}, got {name!r}")
        return dataset


def load_trained(choice: Selection) -> Trained:
    """The model of a run's newest sound checkpoint, or of `choice.weights`.

    A checkpoint that describes itself needs neither config.yaml nor the dataset. An older one takes the
    model's arguments from config.yaml and the classes from the dataset.

    Raises:
        FileNotFoundError: There is no such run or checkpoint.
        ValueError: A damaged checkpoint, or options that do not fit it.
    """
    file, model, state = _read(choice)
    if model is not None and model.description is not None:
        trained = Trained(model, model.description, file, _data(choice, model.description))
    else:
        trained = _by_dataset(choice, file, model, state)
    known, size = trained.description, tuple(trained.data.size)
    faults = []
    if len(known.classes) != trained.model.num_classes:
        faults.append(
            f"classes of {file} must be as many as the model's outputs, {trained.model.num_classes}, "
            f"got {len(known.classes)}"
        )
    if size != known.size:
        faults.append(f"data.size must be the model's, {known.size}, got {size}")
    raise_faults(faults)
    trained.model.eval().to(this_process().device)
    if choice.weights is not None and choice.run is not None:
        print(f"The weights are those of {choice.weights}, not those of the run {choice.run}.")
    return trained


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run's newest sound checkpoint and what it holds.

    Raises:
        FileNotFoundError: The folder does not exist or holds no checkpoint.
        ValueError: Each checkpoint in it is damaged.
    """
    found = RunFolder(folder).find("auto")
    if found is None:
        raise FileNotFoundError(
            f"run must be the folder of a training run or of `export`, got {str(folder)!r} without "
            "checkpoint.pt and config.json"
        )
    return found


def _read(choice: Selection) -> tuple[Path, DualAttentionModel | None, dict[str, Any]]:
    """The weights' file; the model, if the file describes it; and what the file holds."""
    options = dict(choice.model)
    if choice.weights is not None:
        file, state = choice.weights, load_checkpoint(choice.weights)
    elif choice.run is None:
        raise ValueError(REQUIRED)
    elif (choice.run / CONFIG_NAME).is_file() and not (choice.run / RUN_CHECKPOINT).exists():
        model = DualAttentionModel.from_pretrained(choice.run, **options)
        return choice.run / SAFETENSORS_SINGLE_FILE, model, {}
    else:
        file, state = newest_checkpoint(choice.run)
    if state.get("model_arguments") is None:
        return file, None, state
    return file, DualAttentionModel.from_checkpoint(file, state, **options), state


def _by_dataset(
    choice: Selection, file: Path, model: DualAttentionModel | None, state: dict[str, Any]
) -> Trained:
    """The model of a checkpoint that does not describe itself, by the options and the training dataset."""
    data = _data(choice, None)
    options = {**choice.recorded_model, **choice.model, "pretrained": False}
    if "backbone_name" not in options and model is None:
        raise ValueError(f"model.backbone_name must be given for {file}, which does not hold it, got none")
    name = options.get("backbone_name") or state["model_arguments"]["backbone_name"]
    splits = load_splits(data, name)
    if model is None:
        model = build_model(splits, data, options)
        load_weights(model, evaluation_weights(file, state))
    return Trained(model, describe(splits, data, name), file, data)


def _data(choice: Selection, known: Description | None) -> DataOptions:
    values = dict(choice.recorded_data)
    if known is not None:
        names = ("size", "resize", "batch_size", "photos", "holdout", "seed")
        values |= {name: getattr(known, name) for name in names} | {"name": known.dataset}
    values |= choice.data
    if values.get("name") != choice.recorded_data.get("name") and "root" not in choice.data:
        values.pop("root", None)  # it is another dataset's
    if not values.get("name"):
        raise ValueError("data.name must be given, got none")
    return DataOptions(**values)
