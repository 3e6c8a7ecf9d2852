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
from ..model.checks import silence_ignored
from ..model.hub_files import evaluation_weights, read_config
from ..process import this_process
from ..run_folder import RunFolder
from . import face_vit  # noqa: F401  registers the demo's backbone with timm
from .experiment import (
    build_model,
    center_of,
    describe,
    evaluation_transform,
    load_splits,
    warn_of_unknown,
)
from .options import VALUE_RULES, DataOptions, Selection

KINDS = ("fresh", "resampled", "ignored")  # weights that a transfer does not take as they are
PARTS = ("train", "validation", "test", "query", "gallery")
REQUIRED = (
    "--run must be the folder of a training run or of `export`, got none (--config takes its place where it "
    "is a run's config.yaml with checkpoints beside it)"
)


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
        return evaluation_transform(known.task, known.size, known.mean, known.std, center_of(self.data))

    def splits(self, training: bool = False, validation: bool = True) -> Splits:
        """The dataset for evaluation: labels are the model's, and every part has evaluation's transform.

        Args:
            training: Read the training part, too.
            validation: Read the validation part, too, if photos are held out. They lie among the training
                photos.

        Raises:
            FileNotFoundError, ValueError: As `load_dataset`; a dataset for another task, or with classes that
                the model does not know.
        """
        data, known = self.data, self.description
        if data.root is None and data.name in READERS:
            raise ValueError(
                f"--data.root must be the folder of the dataset {data.name}, got none: "
                "the run's config.yaml does not hold it"
            )
        holdout = data.holdout if training or validation else 0
        splits = load_dataset(
            data.name,
            data.root,
            holdout=holdout,
            seed=data.seed,
            training=training,
            gallery_seed=data.gallery_seed,
        )
        if splits.task != known.task:
            raise ValueError(
                f"--data.name must be a dataset for the model's task, {known.task}, got {data.name!r} for "
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
        splits = self.splits(training=name == "train", validation=name == "validation")
        dataset = getattr(splits, name)
        if dataset is None:
            there = {part for part in PARTS if getattr(splits, part) is not None} | {"train"}
            present = [
                part for part in PARTS if part in there or (part == "validation" and self.data.holdout)
            ]
            raise ValueError(f"--part must be one of {', '.join(present)} for {self.data.name}, got {name!r}")
        warn_of_unknown(self.model, dataset)
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
        faults.append(f"--data.size must be the model's, {known.size}, got {size}")
    data = trained.data
    for name in ("mean", "std"):
        if (value := getattr(data, name)) not in (None, getattr(known, name)):
            faults.append(f"--data.{name} must be the run's, {getattr(known, name)}, got {value}")
    if known.task == "reid" and data.test_crop != "resize":
        faults.append(f"--data.test_crop must be 'resize' for identities, got {data.test_crop!r}")
    if data.test_crop == "center" and data.resize < max(known.size):
        faults.append(f"--data.resize must be at least size, {max(known.size)}, got {data.resize}")
    if data.holdout not in (0, known.holdout):  # it would score photos that the model was trained on
        least = f"{known.holdout} or 0 (which scores the test part)" if known.holdout else "0"
        faults.append(f"--data.holdout must be the run's, {least}, got {data.holdout}")
    if data.seed != known.seed:
        faults.append(f"--data.seed must be the run's, {known.seed}, got {data.seed}")
    raise_faults(faults)
    trained.model.eval().to(this_process().device)
    if choice.weights is not None and choice.run is not None:
        print(f"The weights are those of {choice.weights}, not those of the run {choice.run}.")
    return trained


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run's newest sound checkpoint and what it holds, or an exported model's file with its arguments.

    In a folder that is both, the run's checkpoint is taken.

    Raises:
        FileNotFoundError: The folder does not exist or holds neither.
        ValueError: Each checkpoint in it is damaged.
    """
    if (found := RunFolder(folder).find("auto")) is not None:
        return found
    if is_exported(folder):
        file = folder / SAFETENSORS_SINGLE_FILE
        return file, {
            "model_state_dict": load_checkpoint(file),
            "model_arguments": read_config(folder / CONFIG_NAME, str(folder)),
        }
    raise FileNotFoundError(_no_model(folder))


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model and no run."""
    return (folder / CONFIG_NAME).exists() and not RunFolder(folder).paths()


def start_from(model: DualAttentionModel, source: Path) -> str:
    """Load what fits of a run, an exported model or a checkpoint, averaged weights where it has them.

    Returns:
        What was loaded and what was not, to be printed.

    Raises:
        FileNotFoundError, ValueError: As `newest_checkpoint`; or nothing of it fits.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"--transfer must be a checkpoint or the folder of a run or of `export`, got {str(source)!r}: it "
            "does not exist"
        )
    file, state = newest_checkpoint(source) if source.is_dir() else (source, load_checkpoint(source))
    known = {"model_arguments": state.get("model_arguments")}
    try:
        found = load_weights(
            model, {"model_state_dict": evaluation_weights(file, state)} | known, transfer=True
        )
    except ValueError as error:
        raise ValueError(f"--transfer must fit the model, got {file} ({error})") from error
    lists = [f"{kind} ({len(found[kind])}): {', '.join(found[kind])}" for kind in KINDS if found[kind]]
    return "\n".join([f"Training starts from the weights of {file}", *(f"  {line}" for line in lists)])


def _no_model(folder: Path) -> str:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "which does not exist"
    else:
        found = "without checkpoint.pt and config.json"
    return f"--run must be the folder of a training run or of `export`, got {str(folder)!r}, {found}"


def _read(choice: Selection) -> tuple[Path, DualAttentionModel | None, dict[str, Any]]:
    """The weights' file; the model, if the file describes it; and what the file holds."""
    options = dict(choice.model)
    if choice.weights is not None:
        file, state = choice.weights, load_checkpoint(choice.weights)
    elif choice.run is None:
        raise ValueError(REQUIRED)
    elif is_exported(choice.run):
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
        raise ValueError(f"--model.backbone_name must be given for {file}, which does not hold it, got none")
    name = options.get("backbone_name") or state["model_arguments"]["backbone_name"]
    splits = load_splits(data, name)
    if model is None:
        with silence_ignored():
            model = build_model(splits, data, options)
        load_weights(model, evaluation_weights(file, state))
    return Trained(model, describe(splits, data, name), file, data)


def _data(choice: Selection, known: Description | None) -> DataOptions:
    values = dict(choice.recorded_data)
    if known is not None:
        names = ("size", "resize", "batch_size", "photos", "holdout", "seed", "test_crop", "mean", "std")
        values |= {name: getattr(known, name) for name in names} | {"name": known.dataset}
    values |= choice.data
    if values.get("name") != choice.recorded_data.get("name"):
        for name in {"root", "gallery_seed"} - set(choice.data):
            values.pop(name, None)  # it is another dataset's
    if not values.get("name"):
        raise ValueError("--data.name must be given, got none")
    data = DataOptions(**values)
    raise_faults(violations(vars(data), VALUE_RULES))
    return data
