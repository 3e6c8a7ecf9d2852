"""All benchmarks: a name, a shape, a dtype and the paths to compare."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from . import model_paths, op_paths
from .measure import Path
from .shapes import DTYPES, ModelShape, OpShape, dtypes_on, model_shapes, op_dtype, op_shapes


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    build: returns the paths; ratios are taken to the first. seconds: about how long it is timed. flops: the
    fewest FLOP of matrix products it needs; moved: the fewest bytes it reads and writes; both 0 if not
    counted.
    """

    name: str
    shape: ModelShape | OpShape
    dtype: str
    build: Callable[[], dict[str, Path]]
    seconds: float
    flops: int = 0
    moved: int = 0

    @property
    def title(self) -> str:
        """Name, shape and dtype in one line; identifies the results."""
        sizes = [value if isinstance(value, str) else f"{key}={value}" for key, value in self.sizes.items()]
        return " ".join([self.name, *sizes, self.dtype])

    @property
    def sizes(self) -> dict[str, int | str]:
        """The shape as a dict."""
        return self.shape._asdict()


def benchmarks(device: torch.device) -> Iterator[Benchmark]:
    """Yield every benchmark, the most important first: whole steps, then operations."""
    hurry = 30 if device.type == "cuda" else 1
    for name, training in (("train step", True), ("evaluation step", False)):
        for model in model_shapes(device):
            for dtype in dtypes_on(device):
                build = partial(model_paths.paths, model, dtype, device, training)
                yield Benchmark(name, model, dtype, build, seconds=60 / hurry)
    for shape in op_shapes(device):
        yield from _operations(shape, op_dtype(device), device, 8 / hurry)


def _operations(shape: OpShape, dtype: str, device: torch.device, seconds: float) -> Iterator[Benchmark]:
    B, N, H, D, L = shape
    product = 2 * B * H * N * N * D  # all queries by all keys of one image
    token = B * H * N * D * DTYPES[dtype].itemsize  # bytes of the queries, keys or values of a batch
    lse = 4 * B * H * N
    R = N // 10
    operation = partial(Benchmark, shape=shape, dtype=dtype, seconds=seconds)
    pair = partial(op_paths.pair_paths, shape, dtype, device)
    yield operation("pair_attention", build=partial(pair, False), flops=4 * product, moved=4 * token + lse)
    # The backward pass computes the scores again and the gradients of weights, values, queries and keys: 5
    # products instead of 2. It reads what the forward pass read and wrote and a gradient, and writes three.
    yield operation(
        "pair_attention, backward too",
        build=partial(pair, True),
        flops=14 * product,
        moved=12 * token + 2 * lse,
    )
    yield operation(
        "local_attention",
        build=partial(op_paths.local_paths, shape, dtype, device),
        flops=2 * product * R // N,
        moved=2 * token * (N + R) // N,
    )
    yield operation(
        "rollout_row",
        build=partial(op_paths.rollout_paths, shape, dtype, device),
        flops=(L - 1) * product,
        moved=L * (2 * token + lse),
    )
