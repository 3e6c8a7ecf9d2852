"""Rank launch configurations with the static cost model."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from ..ops import launch_table
from .meter.assess import Assessment, assess_all
from .meter.launches import Job, uses

Launch = tuple[launch_table.Key, int]  # a kernel with its head dimension and dtype, and a length
Ranking = dict[Launch, list[Assessment]]

HALF_TILES = ((128, 64), (128, 32), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
AMD_TILES = ((32, 128),)
RDNA_TILES = ((64, 16), (32, 16), (16, 64), (16, 32), (16, 16))  # RDNA needs every matrix operand twice
FULL_TILES = (
    (64, 64),
    (64, 32),
    (32, 64),
    (32, 32),
    (32, 16),
    (16, 32),
    (16, 16),
)  # fp32 needs more registers


def candidates(dtype: str, arch: str) -> list[launch_table.Config]:
    """Return the configurations that are considered for a dtype on an architecture, for any kernel."""
    tiles: tuple[tuple[int, int], ...]
    tiles, stages = (FULL_TILES, (1,)) if dtype == "fp32" else (HALF_TILES, (1, 2))
    if dtype != "fp32" and arch.startswith("gfx"):
        tiles += AMD_TILES + (RDNA_TILES if arch.startswith("gfx1") else ())
    return [launch_table.Config(*tile, *rest) for tile, *rest in itertools.product(tiles, (4, 8), stages)]


def order(
    target: str,
    tried: Mapping[Launch, Sequence[launch_table.Config]],
    progress: bool = False,
    deadline: float = math.inf,
) -> Ranking:
    """Rank configurations of kernels for an architecture, the fastest by the cost model first.

    Those that do not compile, do not fit or spill are left out. Pair attention is ranked with partners in the
    batch; a configuration must also fit with partners in tensors of their own.

    Args:
        target: The architecture, e.g. `sm_90`.
        tried: The configurations of each kernel and length.
        progress: Show a progress bar.
        deadline: When to stop, on the clock of `time.monotonic`. Kernels whose configurations are not all
            compiled by then are left out.

    Raises:
        RuntimeError: If no configuration of a kernel compiles.
    """
    jobs = {launch: [Job(*launch, target, config) for config in tried[launch]] for launch in tried}
    every = [use for group in jobs.values() for job in group for use in uses(job)]
    results: dict[Job, Assessment | Exception] = {}
    for job, result in assess_all(every, progress=progress):
        results[job] = result
        if time.monotonic() > deadline:
            break
    sound = {job: x for job, x in results.items() if isinstance(x, Assessment) and math.isfinite(x.clocks)}
    ranking: Ranking = {}
    for launch, group in jobs.items():
        if not all(use in results for job in group for use in uses(job)):
            continue
        errors = [error for job in group if isinstance(error := results[job], Exception)]
        if len(errors) == len(group):
            raise RuntimeError(f"no candidate compiles for {target} for {describe(*launch)}") from errors[0]
        ranked = [sound[job] for job in group if all(use in sound for use in uses(job))]
        ranking[launch] = sorted(ranked, key=lambda assessment: assessment.clocks)
    return ranking


def neighbors(config: launch_table.Config, tried: Sequence[launch_table.Config]) -> list[launch_table.Config]:
    """Return the configurations that differ from one in a single number, by a factor of two."""

    def ratios(other: launch_table.Config) -> list[float]:
        return sorted(y / x for x, y in zip(astuple(config), astuple(other), strict=True))

    return [other for other in tried if ratios(other) in ([0.5, 1, 1, 1], [1, 1, 1, 2])]


def describe(key: launch_table.Key, n: int) -> str:
    """Return a kernel and length in words."""
    return f"{key.op} {key.direction} with D={key.head_dim}, {key.dtype} and {n} tokens"
