"""The rollout rows of a batch, and an exact cache of rows across batches."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
import xxhash
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..arguments import integer, raise_faults, violations
from ..ops import Backend, rollout_row
from .blocks import BlockTrace

CHUNK = 4096  # words that share one sum of the multilinear hash
WORD = 0xFFFFFFFF


def rollout_of(traces: Sequence[BlockTrace], backend: Backend, start: Tensor | None = None) -> Tensor:
    """The rollout row (B, N) from the traces of the SA blocks, first block to last: the class token's, or one
    that begins with the weights `start` (B, N).
    """
    biases = [trace.bias for trace in traces if trace.bias is not None]
    return rollout_row(
        [trace.q for trace in traces],
        [trace.k for trace in traces],
        [trace.lse for trace in traces],
        row=start,
        biases=biases or None,
        backend=backend,
    )


class RolloutCache:
    """Cache of rollout rows of earlier images; the least recently used row is removed first.

    A row is a function of the queries, keys, log-sum-exps and biases of its layers and of the row that it
    starts from, so these are the key of its entry: a 128-bit hash of their bytes, with the shapes,
    dtypes, device, backend and PyTorch settings that decide the bits of a row. The key does not
    depend on weights directly, so no change of a model can return an old row. The hash is seeded at random,
    once per cache, and two different keys collide with a probability of about 2^-120.

    A hit returns the bits of the first computation. An image misses if another batch size changed the last
    bit of its queries or keys. An entry holds a row of 4 N bytes and a key of 16 bytes. Several threads may
    share a cache. A copy or a pickle of a cache is an empty cache.

    Args:
        entries: Maximum number of rows to keep, at least 1.

    Raises:
        ValueError: `entries` is not an integer >= 1.
    """

    def __init__(self, entries: int = 4096) -> None:
        raise_faults(violations({"entries": entries}, {"entries": integer(1)}))
        self.entries = entries
        self.hits = self.misses = 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._seed = secrets.randbits(64)
        self._multipliers: dict[torch.device, Tensor] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "RolloutCache":
        return RolloutCache(self.entries)

    def __reduce__(self) -> tuple:
        return RolloutCache, (self.entries,)

    def clear(self) -> None:
        """Forget every row and reset the statistics."""
        with self._lock:
            self._rows.clear()
            self.hits = self.misses = 0

    def stats(self) -> dict[str, float]:
        """cache_hits, cache_misses, hit_rate (per image, in [0, 1]) and cache_size (entries)."""
        with self._lock:
            return {
                "cache_hits": self.hits,
                "cache_misses": self.misses,
                "hit_rate": self.hits / max(1, self.hits + self.misses),
                "cache_size": len(self._rows),
            }

    def lookup(self, traces: Sequence[BlockTrace], backend: Backend, start: Tensor | None = None) -> Tensor:
        """Return the rows (B, N) of `rollout_of`; compute only those of images that miss.

        Where bytes cannot be read (tracing, fake or meta tensors, tensor subclasses, `torch.func` transforms,
        CUDA graph capture) this calls `rollout_of` and does not use the cache. On a GPU it waits for the GPU
        once.
        """
        if not _readable(traces):
            return rollout_of(traces, backend, start)
        keys = self._keys(traces, backend, start)
        with self._lock:
            found = {key: self._rows[key] for key in keys if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
            missing = [i for i, key in enumerate(keys) if key not in found]
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        if not missing:
            return torch.stack([found[key] for key in keys])
        if len(missing) < len(keys):
            index = torch.tensor(missing, device=traces[0].q.device)
            traces = [trace.of(index) for trace in traces]
            start = None if start is None else start[index]
        rows = rollout_of(traces, backend, start)
        # A view of a row would keep the whole batch.
        fresh = {keys[i]: row.clone() for i, row in zip(missing, rows, strict=True)}
        with self._lock:
            for key, row in fresh.items():
                self._rows.setdefault(key, row)
            while len(self._rows) > self.entries:
                self._rows.popitem(last=False)
        found |= fresh
        return rows if len(missing) == len(keys) else torch.stack([found[key] for key in keys])

    def _keys(
        self, traces: Sequence[BlockTrace], backend: Backend, start: Tensor | None = None
    ) -> list[bytes]:
        """The key of each image."""
        device = traces[0].q.device
        biases = [trace.bias for trace in traces if trace.bias is not None]
        shared = [bias for bias in biases if bias.shape[0] == 1]  # by all images
        parts = [part for trace in traces for part in trace[:3]]
        parts += [bias for bias in biases if bias.shape[0] != 1] + ([] if start is None else [start])
        layout = [[(tuple(part.shape[1:]), part.dtype) for part in group] for group in (parts, shared)]
        settings = (_float32_precision(device), torch.get_num_threads())
        context = repr((len(traces), layout, device, backend, settings)).encode()
        for part in self._host_parts(shared, device) if shared else []:
            for only in _bytes(part).numpy():
                context += xxhash.xxh3_128(only, seed=self._seed).digest()
        hashes = [xxhash.xxh3_128(context, seed=self._seed) for _ in traces[0].q]
        for part in self._host_parts(parts, device):
            for state, image in zip(hashes, _bytes(part).numpy(), strict=True):
                state.update(image)
        return [state.digest() for state in hashes]

    def _host_parts(self, parts: Iterable[Tensor], device: torch.device) -> Iterable[Tensor]:
        """Return what the CPU hashes: the traces, or a short hash of them that another device computed."""
        return parts if device.type == "cpu" else [condense(parts, self._multipliers_on(device)).cpu()]

    def _multipliers_on(self, device: torch.device) -> Tensor:
        """Random numbers of `condense` (2, 4, CHUNK)."""
        if device not in self._multipliers:
            random = torch.Generator("cpu").manual_seed(self._seed >> 1)
            numbers = torch.randint(-(2**63), 2**63 - 1, (2, 4, CHUNK), generator=random, device="cpu")
            self._multipliers[device] = numbers.to(device)
        return self._multipliers[device]


def condense(parts: Iterable[Tensor], multipliers: Tensor) -> Tensor:
    """Hash the bytes of each image with a multilinear hash, in PyTorch operations on its own device.

    Each chunk of words w gives four numbers, the upper half of Σ m·w mod 2^64 for random multipliers m; the
    numbers of all chunks are hashed again in the same way. Two different images of the same shape agree with
    probability at most 2^-123 (Lemire & Kaser, "Strongly universal string hashing is fast", 2014).

    Args:
        parts: Tensors (B, ...) of any dtype and strides.
        multipliers: Random int64 (2, 4, CHUNK).

    Returns:
        (B, n) int64, with n fixed by the shapes.
    """
    first, second = multipliers
    words = torch.cat([_multilinear(part, first) for part in parts], 1)
    return _multilinear(words, second)


def _bytes(part: Tensor) -> Tensor:
    """The bytes of each image of a tensor (B, ...) -> (B, n) uint8."""
    flat = part.contiguous().flatten(1)
    # A dimension of size 1 may have any stride, which a view of another width refuses.
    if flat.stride(1) != 1:
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def _multilinear(part: Tensor, multipliers: Tensor) -> Tensor:
    """Four words below 2^32, as int64, of each chunk of the bytes of each image -> (B, 4 chunks)."""
    data = _bytes(part)
    data = torch.nn.functional.pad(data, (0, -data.shape[1] % (4 * CHUNK)))
    words = data.view(torch.int32).unflatten(1, (-1, CHUNK)).long() & WORD
    sums = torch.stack([(words * row).sum(-1) for row in multipliers], -1)
    return (sums >> 32 & WORD).flatten(1)


def _readable(traces: Sequence[BlockTrace]) -> bool:
    """True if the traces are plain tensors with bytes and no tracing or transform is active."""
    parts = [part for trace in traces for part in trace if part is not None]
    plain = all(type(part) is Tensor and part.device.type != "meta" for part in parts)
    traced = (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or (traces[0].q.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    return plain and not traced


def _float32_precision(device: torch.device) -> str:
    """PyTorch's precision of float32 matrix products on a device, which decides the last bits of a row."""
    module = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    matmul = getattr(module, "matmul", None)
    # Newer versions have one setting per backend, and may refuse to read the common one.
    return getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()
