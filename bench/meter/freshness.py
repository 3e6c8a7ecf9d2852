"""Whether the cost model still ranks the shipped configurations first among their neighbors."""

from collections.abc import Collection

from dca_triton.ops import launch_table
from dca_triton.tuning.ranking import candidates, describe, neighbors, order
from dca_triton.tuning.tuner import spell

from .gate import ALLOWED


def stale(arch: str, keys: Collection[launch_table.Key] = (), progress: bool = False) -> list[str]:
    """Rank the shipped configurations of an architecture again, each beside its neighbors.

    keys: the kernels to rank; by default all. Returns a sentence for each configuration that a neighbor beats
    by more than 3 %, or that spills while a neighbor does not.
    """
    table = launch_table.modeled(arch)
    shipped = {(key, n): config for key in keys or table for n, config in table[key].items()}
    tried = {
        launch: [config, *neighbors(config, candidates(launch[0].dtype, arch))]
        for launch, config in shipped.items()
    }
    found = []
    for launch, ranked in order(arch, tried, progress).items():
        clocks = {assessment.job.config: assessment.clocks for assessment in ranked}
        own = clocks.get(shipped[launch], float("inf"))
        if ranked and own > ALLOWED * ranked[0].clocks:
            best = ranked[0].job.config
            found.append(
                f"{arch} {describe(*launch)}: {spell(shipped[launch])} takes {own:.0f} clocks, "
                f"{spell(best)} takes {clocks[best]:.0f}"
            )
    return found
