"""The launches that the tuner may choose, in groups of equal dtype, warps and stages."""

import pytest
import torch

from dca_triton.ops import launch_table
from dca_triton.tuning.ranking import candidates


def group(name: str, warps: int, stages: int) -> list[launch_table.Config]:
    """Those of the current GPU."""
    arch = launch_table.gpu_of(torch.device("cuda", torch.cuda.current_device())).arch
    return [c for c in candidates(name, arch) if (c.num_warps, c.num_stages) == (warps, stages)]


GROUPS = sorted(  # every architecture has the same
    {(name, c.num_warps, c.num_stages) for name in launch_table.DTYPES for c in candidates(name, "sm_80")}
)
EVERY_LAUNCH = pytest.mark.parametrize(
    ("name", "warps", "stages"),
    # warps and stages do not change what the sanitizer runs
    [pytest.param(*g, marks=() if g[1:] == (4, 1) else pytest.mark.driver) for g in GROUPS],
)
