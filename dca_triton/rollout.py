"""Rollout rows of a batch, and their exact cache across batches."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from .arguments import integer, violations
from .blocks import BlockTrace
from .ops import Backend, rollout_row


def rollout_of(attended: Sequence[BlockTrace], scale: float, backend: Backend) -> Tensor:
    """The class token's rollout row (B, N) from what the blocks left, first block to last."""
    qs, ks, lses = (list(part) for part in zip(*attended, strict=True))
    return rollout_row([q.detach() for q in qs], [k.detach() for k in ks], lses, scale, backend=backend)


class RolloutCache:
    """Rollout rows of images seen before, least recently used first out.

    An entry's key holds a 128-bit hash of the image's bytes, its shape and dtype, and the version of every
    weight, so a row returns only for the very image and weights that made it. Looking a batch up costs one
    host sync on a GPU. The hash is multilinear with secret random keys: two different images collide with
    probability 2^-124 at most. Weights count as changed when PyTorch's version counter, storage or dtype
    says so; writes through `.data` escape that counter and ask for `clear()`.

    Args:
        entries: How many images are kept, at least 1.

    Raises:
        ValueError: Fewer entries.
    """

    def __init__(self, entries: int = 4096) -> None:
        if faults := violations({"entries": entries}, {"entries": integer(1)}):
            raise ValueError(faults[0])
        self.entries = entries
        self.hits = self.misses = 0
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._hash_keys: dict[tuple[int, torch.device], Tensor] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "RolloutCache":
        return RolloutCache(self.entries)

    def __getstate__(self) -> dict:
        return {"entries": self.entries}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def clear(self) -> None:
        """Forget every row and reset the statistics."""
        with self._lock:
            self._rows.clear()
            self.hits = self.misses = 0

    def stats(self) -> dict[str, float]:
        """cache_hits, cache_misses, hit_rate (per image, in [0, 1]) and cache_size (entries)."""
        with self._lock:
            asked = max(1, self.hits + self.misses)
            return {
                "cache_hits": self.hits,
                "cache_misses": self.misses,
                "hit_rate": self.hits / asked,
                "cache_size": len(self._rows),
            }

    def lookup(self, images: Tensor, version: Hashable, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows (B, N) of `images` (B, ...); `compute` gives those of the images at the missing indices."""
        keys: list[Hashable] = [(version, digest) for digest in self._digests(images)]
        with self._lock:
            found = {key: self._rows[key] for key in keys if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
            missing = [i for i, key in enumerate(keys) if key not in found]
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        if missing:
            rows = compute(torch.tensor(missing, device=images.device))
            fresh = {keys[i]: rows[j].clone() for j, i in enumerate(missing)}
            found |= fresh
            with self._lock:
                self._rows.update(fresh)
                while len(self._rows) > self.entries:
                    self._rows.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def _digests(self, images: Tensor) -> list[Hashable]:
        words = _as_words(images)
        keys = self._keys_for(words.shape[1], images.device)
        # Multilinear hashing: the upper half of Σ key·word mod 2^64 is strongly universal.
        sums = torch.stack([(words * key).sum(1) for key in keys], 1)
        layout = (tuple(images.shape[1:]), images.dtype, images.device)
        return [(layout, tuple(v >> 32 for v in row)) for row in sums.tolist()]

    def _keys_for(self, length: int, device: torch.device) -> Tensor:
        with self._lock:
            if (length, device) not in self._hash_keys:
                self._hash_keys.clear()
                secret = torch.Generator().manual_seed(secrets.randbits(63))
                keys = torch.randint(-(2**63), 2**63 - 1, (4, length), generator=secret)
                self._hash_keys[length, device] = keys.to(device)
            return self._hash_keys[length, device]


def _as_words(images: Tensor) -> Tensor:
    """The bytes of each image as int64 words below 2^32."""
    flat = images.detach().contiguous().flatten(1)
    if flat.element_size() == 8:
        return flat.view(torch.int32).long() & 0xFFFFFFFF
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[flat.element_size()]
    return flat.view(integer).long() & (2 ** (8 * flat.element_size()) - 1)


def weights_version(tensors: Iterable[Tensor]) -> Hashable:
    """Changes whenever a weight is written, replaced, moved or cast."""
    return tuple((t.data_ptr(), t._version, t.dtype) for t in tensors)
