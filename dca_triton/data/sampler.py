"""Batches of P identities x K photos, which batch-hard triplets need (Hermans et al., 2017)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..arguments import integer, raise_faults, violations

VALUE_RULES = {name: integer(1) for name in ("p", "k", "world_size")}


class IdentitySampler(Sampler[list[int]]):
    """Batch sampler (DataLoader's `batch_sampler`): each batch holds `k` photos of each of `p` identities.

    In an epoch an identity's photos are dealt out in groups of k, in random order and each once; its last
    group is filled up with photos already used. Groups that do not fill a whole batch wait for another epoch.
    Every rank gets the same number of batches, and a group goes to one batch of one rank. Batches depend only
    on (seed, epoch): call `set_epoch` before each epoch.

    Args:
        labels: (number of photos,) integers, the identities.
        p: Identities of a batch, at least 1.
        k: Photos of each identity, at least 1.
        seed: Seeds the order.
        rank: Rank of this process, in 0..world_size-1.
        world_size: Number of processes, at least 1.

    Raises:
        ValueError: Sizes or rank out of range, fewer than p identities, or too few photos for one batch per
            rank; every reason at once.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        p: int,
        k: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        identities, counts = torch.as_tensor(labels).unique(return_counts=True)
        faults = violations({"p": p, "k": k, "world_size": world_size}, VALUE_RULES)
        if not 0 <= rank < world_size:
            faults.append(f"rank must be in 0..world_size-1, {world_size - 1}, got {rank}")
        if len(identities) < p:
            faults.append(f"labels must hold at least p={p} identities, got {len(identities)}")
        raise_faults(faults)
        self.labels = torch.as_tensor(labels)
        self.p, self.k, self.seed, self.rank, self.world_size = p, k, seed, rank, world_size
        self.epoch = 0
        self.batches = (
            _most_batches(counts.add(k - 1).div(k, rounding_mode="floor"), p) // world_size * world_size
        )
        if not self.batches:
            raise_faults(
                [f"labels must hold enough photos for {p} x {k} on every rank, got {len(self.labels)}"]
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        _, position, counts = self.labels[shuffled].unique(return_inverse=True, return_counts=True)
        photos = shuffled[position.argsort(stable=True)].split(counts.tolist())
        groups: list[Tensor] = []
        for identity in torch.randperm(len(photos), generator=generator).tolist():
            own = photos[identity]
            dealt = min(-(-len(own) // self.k), self.batches)
            groups += own[torch.arange(dealt * self.k) % len(own)].split(self.k)
        # Group g goes to batch g mod M. An identity has at most M groups, one after another: never two in
        # one batch.
        order = torch.randperm(self.batches, generator=generator)[self.rank :: self.world_size].tolist()
        for batch in order:
            yield torch.cat(groups[batch : self.p * self.batches : self.batches]).tolist()


def _most_batches(groups: Tensor, p: int) -> int:
    """The largest M such that M batches of p distinct identities exist: sum_i min(groups_i, M) >= p M."""
    most = 0
    while int(groups.clamp(max=most + 1).sum()) >= p * (most + 1):
        most += 1
    return most
