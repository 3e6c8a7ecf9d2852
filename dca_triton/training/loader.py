"""Batches that depend only on (seed, epoch), for any number of workers and after a resume."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from ..arguments import integer, raise_faults, violations
from ..data import IdentitySampler
from ..data.records import Batch
from ..process import this_process


def seed_of(*numbers: int) -> int:
    """Return a seed below 2^63 for a tuple of integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()) >> 1


class Labeled(Protocol):
    """A dataset of items with labels (number of items,)."""

    @property
    def labels(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class SeededDataset(Dataset[Any]):
    """A dataset whose random transforms depend only on (seed, epoch, index), in any worker process.

    Args:
        dataset: Maps an index to an item; draws from PyTorch's CPU generator.
        seed: Seeds all draws.
    """

    def __init__(self, dataset: Labeled, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # worker processes see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw differently from now on."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, int(self.epoch), index))
            return self.dataset[index]


def training_loader(
    dataset: Labeled, batch_size: int, per_identity: int = 0, workers: int = 4, seed: int = 0
) -> DataLoader[Batch]:
    """Shuffled batches for `DualAttentionTrainer`, divided evenly among the processes of a launch.

    Args:
        dataset: Photos with labels.
        batch_size: Photos of a batch in each process, >= 1.
        per_identity: Photos of each identity in a batch (Re-ID's K, a divisor of batch_size); 0 shuffles
            without regard to identities.
        workers: Processes that decode photos, >= 0.
        seed: Seeds the order and the random transforms.

    Raises:
        ValueError: As `IdentitySampler`; a batch_size below 1 or one that per_identity does not divide.
    """
    faults = violations({"batch_size": batch_size}, {"batch_size": integer(1)})
    if not faults and per_identity and batch_size % per_identity:
        faults.append(f"batch_size must be a multiple of per_identity={per_identity}, got {batch_size}")
    raise_faults(faults)
    state = this_process()
    rank, processes = state.process_index, state.num_processes
    seeded = SeededDataset(dataset, seed)
    common: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": state.device.type == "cuda",
        # DataLoader draws worker seeds from this; the global generator initializes weights.
        "generator": torch.Generator(),
    }
    if per_identity:
        identities = batch_size // per_identity
        drawn = IdentitySampler(dataset.labels, identities, per_identity, seed, rank, processes)
        return DataLoader(seeded, batch_sampler=drawn, **common)
    sampler: DistributedSampler = DistributedSampler(seeded, processes, rank, seed=seed)
    return DataLoader(seeded, batch_size, sampler=sampler, **common)


def parts_of(batches: Iterable[Batch]) -> dict[str, Any]:
    """Return the iterable and, if it is a loader, its samplers and its dataset."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    parts = {
        "batches": batches,
        "batch_sampler": batch_sampler,
        "sampler": getattr(batch_sampler, "sampler", None),
        "dataset": getattr(batches, "dataset", None),
    }
    return {name: part for name, part in parts.items() if part is not None}


def length(batches: Iterable[Any]) -> int | None:
    """Return the number of batches in an epoch, or of photos of a sampler, or None if it is unknown."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a loader of a dataset without a length
        return None


def last_batch(batches: Iterable[Batch]) -> int | None:
    """Return the photos in the smallest batch of an epoch, a loader's last one, or None if it is unknown."""
    if isinstance(batches, list | tuple):
        return min((len(batch["label"]) for batch in batches), default=None)
    sampler = parts_of(batches).get("batch_sampler")
    photos = length(sampler.sampler) if isinstance(sampler, BatchSampler) else None
    if photos is None or sampler is None:
        return None
    return sampler.batch_size if sampler.drop_last else photos % sampler.batch_size or sampler.batch_size


def set_epoch(batches: Iterable[Batch], epoch: int) -> None:
    """Call `set_epoch` of an iterable, its samplers and its dataset, if they have one."""
    for part in parts_of(batches).values():
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def sharding_faults(batches: Iterable[Batch], processes: int) -> list[str]:
    """Return the fault of a loader that does not divide its photos among the processes of the launch."""
    parts = parts_of(batches)
    sampler = parts.get("sampler")
    if isinstance(sampler, RandomSampler | SequentialSampler):
        shares = 1
    elif isinstance(sampler, DistributedSampler):
        shares = sampler.num_replicas
    else:  # what others do is not known
        shares = getattr(parts.get("batch_sampler"), "world_size", processes)
    if shares == processes:
        return []
    return [
        f"batches must be a loader of training_loader or one with a sampler for {processes} processes, as "
        f"the launch has, got one for {shares}"
    ]


def random_state(batches: Iterable[Batch]) -> list[Tensor]:
    """Return the states of the generators that can order an epoch: PyTorch's CPU one and the loader's."""
    return [generator.get_state() for generator in _generators(batches)]


def set_random_state(batches: Iterable[Batch], states: list[Tensor]) -> None:
    """Restore the generators of `random_state`."""
    generators = _generators(batches)
    faults = []
    if len(states) != len(generators):
        faults.append(
            f"batches must have {len(states)} random generators as in the checkpoint (PyTorch's and those of "
            f"the loader, its samplers and its dataset), got {len(generators)}"
        )
    elif any(g.get_state().shape != state.shape for g, state in zip(generators, states, strict=True)):
        faults.append("rng_state must hold states of PyTorch's random generators, got others")
    raise_faults(faults)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield `size` batches at a time; the last group may be smaller."""
    if isinstance(batches, DataLoader) and batches.persistent_workers and not _is_seeded(batches):
        # Checkpoints do not hold the generators of old workers, and a loader with old workers skips the draw
        # that seeds new ones. Only new workers give a resumed epoch the same photos.
        batches._iterator = None
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _is_seeded(batches: DataLoader) -> bool:
    """True if the order and photos of an epoch depend only on its number, as with `training_loader`."""
    order = parts_of(batches).get("sampler", batches.batch_sampler)
    return isinstance(batches.dataset, SeededDataset) and isinstance(
        order, DistributedSampler | IdentitySampler
    )


def _generators(batches: Iterable[Batch]) -> list[torch.Generator]:
    own = [getattr(part, "generator", None) for part in parts_of(batches).values()]
    return [torch.default_generator, *dict.fromkeys(g for g in own if isinstance(g, torch.Generator))]
