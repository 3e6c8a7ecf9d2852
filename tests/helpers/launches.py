"""The launches that the tuner may choose, in groups of equal dtype, warps and stages."""

import pytest

from dca_triton.ops import launch_table
from dca_triton.tuning.tuner import candidates


def group(name: str, warps: int, stages: int) -> list[launch_table.Config]:
    return [c for c in candidates(name) if (c.num_warps, c.num_stages) == (warps, stages)]


GROUPS = sorted({(name, c.num_warps, c.num_stages) for name in launch_table.DTYPES for c in candidates(name)})
EVERY_LAUNCH = pytest.mark.parametrize(
    ("name", "warps", "stages"),
    # warps and stages do not change what the sanitizer runs
    [pytest.param(*g, marks=() if g[1:] == (4, 1) else pytest.mark.driver) for g in GROUPS],
)
