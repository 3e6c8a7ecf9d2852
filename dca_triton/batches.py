"""Batches whose bits follow from (seed, epoch) alone: with any number of workers, and again on a resume."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from .data import IdentitySampler
from .embedding import Batch


def seed_of(*numbers: int) -> int:
    """A seed below 2^63 for each tuple of integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()) >> 1


class Labelled(Protocol):
    """A dataset of items with labels (number of items,)."""

    @property
    def labels(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class SeededDataset(Dataset[Any]):
    """A dataset whose random transforms draw from (seed, epoch, index), in whichever process they run.

    Args:
        dataset: Maps an index to an item; draws from PyTorch's CPU generator.
        seed: Of all draws.
    """

    def __init__(self, dataset: Labelled, seed: int = 0) -> None:
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


def process() -> PartialState:
    """This process among those of a launch, with its device: a GPU of its own where there is one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def training_loader(
    dataset: Labelled, batch_size: int, per_identity: int = 0, workers: int = 4, seed: int = 0
) -> DataLoader[Batch]:
    """Shuffled batches for `DualAttentionTrainer`, shared out evenly among the processes of a launch.

    Args:
        dataset: Photos with labels.
        batch_size: Photos of a batch in each process, at least 1.
        per_identity: Photos of each identity in a batch (Re-ID's K, a divisor of batch_size); 0 shuffles
            without regard to identities.
        workers: Processes that decode photos, at least 0.
        seed: Of the order and of the random transforms.

    Raises:
        ValueError: As `IdentitySampler`, a batch_size below 1 or one that per_identity does not divide.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed is at least 1")
    state = process()
    rank, processes = state.process_index, state.num_processes
    if per_identity and batch_size % per_identity:
        raise ValueError(f"batch_size is {batch_size}; allowed are multiples of per_identity, {per_identity}")
    seeded = SeededDataset(dataset, seed)
    if per_identity:
        identities = batch_size // per_identity
        drawn = IdentitySampler(dataset.labels, identities, per_identity, seed, rank, processes)
        order: dict[str, Any] = {"batch_sampler": drawn}
    else:
        sampler: DistributedSampler = DistributedSampler(seeded, processes, rank, seed=seed)
        order = {"batch_size": batch_size, "sampler": sampler}
    return DataLoader(
        seeded,
        **order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=state.device.type == "cuda",
        generator=torch.Generator(),  # a loader draws workers' seeds: not from the generator of the weights
    )


def set_epoch(batches: Iterable[Batch], epoch: int) -> None:
    """Tell an iterable, a loader's samplers and dataset which epoch comes (from 0), where they ask for it."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    parts = [
        batches,
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(batches, "dataset", None),
    ]
    for part in parts:
        if part is not None and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def same_everywhere(batches: Iterable[Batch]) -> bool:
    """Whether a loader's sampler knows nothing of other processes, so that each would train on all photos."""
    sampler = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    return isinstance(sampler, RandomSampler | SequentialSampler)


def random_state(batches: Iterable[Batch]) -> list[Tensor]:
    """What an epoch's order can depend on besides its number: PyTorch's CPU generator, the loader's own."""
    return [generator.get_state() for generator in _generators(batches)]


def set_random_state(batches: Iterable[Batch], states: list[Tensor]) -> None:
    """Put the generators of `random_state` back."""
    for generator, state in zip(_generators(batches), states, strict=True):
        generator.set_state(state)


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """`size` batches at a time; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _generators(batches: Iterable[Batch]) -> list[torch.Generator]:
    sampler = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    own = [getattr(part, "generator", None) for part in (batches, sampler)]
    return [torch.default_generator, *dict.fromkeys(g for g in own if isinstance(g, torch.Generator))]
