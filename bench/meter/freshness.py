"""Whether the cost model ranks the shipped configurations first among their neighbors."""

import math
from collections.abc import Collection

from dca_triton.ops import launch_table
from dca_triton.tuning.ranking import candidates, describe, neighbors, order
from dca_triton.tuning.tuner import spell

from .gate import ALLOWED
from .report import LENGTHS


def stale(arch: str, keys: Collection[launch_table.Key] = (), progress: bool = False) -> list[str]:
    """Rank the shipped configurations of an architecture again, each beside its neighbors.

    keys: the kernels to rank; by default all. Returns a sentence for each configuration that spills while a
    neighbor does not, or that a neighbor beats: it is more than 3 % faster at one of the lengths 197 and 785
    that the configuration serves, and nowhere more than 3 % slower.
    """
    table = launch_table.modeled(arch)
    shipped = {
        (key, n): launch_table.nearest(by_length, n)
        for key, by_length in table.items()
        if not keys or key in keys
        for n in LENGTHS
    }
    tried = {
        (key, n): [config, *neighbors(config, candidates(key.dtype, arch))]
        for (key, n), config in shipped.items()
    }
    clocks = {
        launch: {assessment.job.config: assessment.clocks for assessment in ranked}
        for launch, ranked in order(arch, tried, progress).items()
    }
    found = []
    for key, config in dict.fromkeys((key, config) for (key, _), config in shipped.items()):
        served = [n for n in LENGTHS if shipped[key, n] == config]
        for other in tried[key, served[0]][1:]:
            if not all(other in clocks[key, n] for n in served):
                continue
            gains = {n: clocks[key, n].get(config, math.inf) / clocks[key, n][other] for n in served}
            n = max(served, key=lambda n: gains[n])
            if gains[n] > ALLOWED and min(gains.values()) > 1 / ALLOWED:
                found.append(
                    f"{arch} {describe(key, n)}: {spell(config)} takes {gains[n]:.2f} times "
                    f"as long as {spell(other)}"
                )
    return found
