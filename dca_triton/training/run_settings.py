"""The settings that decide a run's results, as plain values: stored in checkpoints, compared on a resume."""

import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Subset

from ..data import ImageRecord
from ..data.records import Batch
from .loader import length, parts_of

MAX_SHOWN = 100  # characters of a value in an error
ABSENT = object()

# Model arguments that do not change results, only speed or the source of initial weights.
FREE_MODEL_ARGUMENTS = (
    "pretrained",
    "cache_attention_rollout",
    "backend",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)


# Attributes of loaders, samplers and datasets that decide the content of an epoch.
BATCH_ATTRIBUTES = (
    "batch_size",
    "drop_last",
    "shuffle",
    "replacement",
    "num_samples",
    "seed",
    "p",
    "k",
)


def plain(name: str, value: Any, faults: list[str]) -> Any:
    """Copy nested plain values, with tuples as lists; append a sentence to `faults` for each other value."""
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{number}]", item, faults) for number, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(f"{name}.{key}", item, faults) for key, item in value.items()}
    faults.append(
        f"{name} must be None, True, False, an int, a finite float, a str, or a list or dict of these, "
        f"got {stable_repr(value)}"
    )
    return None


def model_arguments(model: Any) -> dict[str, Any] | None:
    """Return the model's constructor arguments as plain values; None if they are not plain."""
    faults: list[str] = []
    arguments = plain("model", getattr(model, "_hub_mixin_config", None), faults)
    return None if faults or getattr(model, "_not_json", None) else arguments


def stable_repr(value: Any) -> str:
    """Return `repr` in one line without memory addresses, so that it can be compared after a restart."""
    return "nothing" if value is ABSENT else " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).split())


def differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """ "`name` must be <before>, got <now>" for each nested value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(inner, before.get(key, ABSENT), now.get(key, ABSENT))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(f"{name}[{number}]", old, new)
    elif before != now:
        old, new = _cut(stable_repr(before), stable_repr(now))
        yield f"{name} must be {old}, got {new}"


def _cut(*texts: str) -> list[str]:
    """Cut long texts to start where they differ."""
    same = 0
    if max(map(len, texts)) > MAX_SHOWN:
        equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
        same = max(0, sum(1 for _ in equal) - MAX_SHOWN // 4)
    return [
        "..." * (same > 0) + text[same : same + MAX_SHOWN] + "..." * (len(text) > same + MAX_SHOWN)
        for text in texts
    ]


def describe(model: nn.Module, batches: Iterable[Batch], pairs: Any, augment: Any) -> dict[str, Any]:
    """Return the settings that are not plain arguments of the trainer or the model."""
    return {
        "augment": stable_repr(augment),
        "pairs": {"type": type(pairs).__qualname__, **plain("pairs", getattr(pairs, "__dict__", {}), [])},
        "learning_parameters": [name for name, p in model.named_parameters() if p.requires_grad],
        "batches": describe_batches(batches),
        "on_corrupt": _on_corrupt(batches),
    }


def describe_batches(batches: Iterable[Batch]) -> dict[str, Any]:
    """Describe an epoch in plain values: types, sizes, seeds, photos and their transform.

    Worker processes, prefetching and the location of the photos are left out, because they change nothing.
    """
    found: dict[str, Any] = {"length": length(batches)}
    for name, part in parts_of(batches).items():
        found[name] = {"type": f"{type(part).__module__}.{type(part).__qualname__}"}
        for attribute in BATCH_ATTRIBUTES:
            value = getattr(part, attribute, None)
            if type(value) in (bool, int, str):
                found[name][attribute] = value
    if isinstance(batches, list | tuple):
        labels = [batch.get("label") for batch in batches if isinstance(batch, dict)]
        found["content"] = _digest(labels)
    content: list[Any] = []
    for dataset in _datasets(batches):
        if isinstance(dataset, Subset):
            content.append(list(dataset.indices))
        records = getattr(dataset, "records", ())
        if records and all(isinstance(record, ImageRecord) for record in records):
            root = os.path.commonpath([record.path.parent for record in records])
            content += [(os.path.relpath(r.path, root), r.label, r.camera) for r in records]
            if any(r.view != -1 for r in records):  # most datasets have none, nor had earlier versions
                content.append([r.view for r in records])
        elif isinstance(getattr(dataset, "labels", None), Tensor):
            content.append(dataset.labels.tolist())
        if getattr(dataset, "transform", None) is not None:
            found["transform"] = stable_repr(dataset.transform)
        found["photos"] = length(dataset)
    return found | {"content": _digest(content)} if content else found


def _datasets(batches: Iterable[Batch]) -> Iterator[Any]:
    """A loader's dataset, the one that it wraps, and so on."""
    dataset = getattr(batches, "dataset", None)
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _on_corrupt(batches: Iterable[Batch]) -> str | None:
    """What happens to a photo that cannot be read; None if no dataset of the loader says so."""
    known = (getattr(dataset, "on_corrupt", None) for dataset in _datasets(batches))
    return next((str(value) for value in known if value is not None), None)


def _digest(content: list[Any]) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
