"""What a model's numbers mean: its task, classes, size and normalization, stored with its weights."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, Self

from .arguments import Rule, choice, integer, number, raise_faults, shown, violations
from .branches import Task


def _list_of(fits: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda v: (
        isinstance(v, list | tuple) and len(v) == (length or max(1, len(v))) and all(map(fits, v))
    )


VALUE_RULES: dict[str, Rule] = {
    "task": choice("fgvc", "reid"),
    "classes": (_list_of(lambda v: isinstance(v, str)), "a list of names"),
    "size": (_list_of(integer(1)[0], 2), "a height and a width, integers >= 1"),
    "mean": (_list_of(number(lambda v: True, "")[0], 3), "3 finite numbers"),
    "std": (_list_of(number(lambda v: v > 0, "")[0], 3), "3 finite numbers > 0"),
    "dataset": (lambda v: isinstance(v, str), "a name"),
    "resize": integer(1),
    "batch_size": integer(1),
    "photos": integer(1),
    "holdout": integer(0),
    "seed": integer(0),
    "test_crop": choice("center", "resize"),
}


@dataclass(frozen=True)
class Description:
    """A trained model's task, classes and preprocessing, and the data options that its training depends on.

    Args:
        task: "fgvc" or "reid".
        classes: Names of the labels 0..K-1.
        size: Height and width in pixels.
        mean: Mean of each channel in [0, 1], for normalization.
        std: Standard deviation of each channel, for normalization.
        dataset: Name of the training dataset.
        resize: Side in pixels before the random crop (fgvc).
        batch_size: Photos in a batch of each process.
        photos: Photos of one identity in a batch (reid).
        holdout: Photos of each class kept for validation (fgvc).
        seed: Seeds the order of the batches and the choice of validation photos.
        test_crop: How evaluation makes a photo as large as `size` (fgvc): "resize" resizes it; "center"
            resizes it to `resize` and crops the center.

    Raises:
        ValueError: Values of other types or ranges, all of them at once.
    """

    task: Task
    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    resize: int
    batch_size: int
    photos: int
    holdout: int
    seed: int
    test_crop: Literal["center", "resize"] = "resize"

    def __post_init__(self) -> None:
        raise_faults(violations(vars(self), VALUE_RULES))
        for name in ("classes", "size", "mean", "std"):  # JSON has no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of(cls, values: Any, source: str) -> Self:
        """Read the plain values that `plain` wrote; `source` names the file in errors.

        Raises:
            ValueError: `values` is not a mapping with exactly these names, of which those with a default may
                be absent, and values of their types.
        """
        names = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, Mapping):
            raise ValueError(f"description in {source} must be a dict, got {shown(values)}")
        if not required <= set(values) <= names:
            missing = ", ".join(sorted(required - set(values)))
            unknown = ", ".join(sorted(map(str, set(values) - names)))
            raise ValueError(
                f"description in {source} must hold {', '.join(sorted(names))}, "
                f"got {f'none of {missing}' if missing else ''}{f' and {unknown}' if unknown else ''}"
            )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"description in {source}: {error}") from error

    def plain(self) -> dict[str, Any]:
        """The description as plain values, as checkpoints and config.json hold it.

        Fields at their default are left out, so that checkpoints older than a field describe the same run.
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}
