"""Specializations that Triton compiles for sizes of 1, multiples of 16, and partners of another length.

Triton turns an argument of 1 into a constant, which changes the types that meet at a kernel's branches. The
interpreter does not.
"""

import re

import pytest
import torch
from torch import Tensor

from dca_triton.ops import Attention, launch_table, triton_launch, triton_rollout
from dca_triton.ops.pairing import invert_pairs
from dca_triton.tuning.meter.capture import Launch, capture
from dca_triton.tuning.meter.code import examine
from dca_triton.tuning.meter.launches import Job, launch_of

D = 16
SIZES = [  # queries, keys, keys of the partners (None: in the batch), heads
    (1, 1, 50, 1),
    (1, 16, None, 3),
    (17, 17, 1, 16),
]
SIZE_NAMES = ("M", "N", "N2", "H")


def cuda(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def launches(M: int, N: int, others: int | None, H: int) -> list[Launch]:
    """Return the launches of every operation at these sizes."""

    def run() -> None:
        q, k, v = cuda(2, N, 3, H, D).unbind(2)
        q = q[:, :M]
        for pairs in (None, invert_pairs(cuda(2, dtype=torch.long), 2)):
            pk, pv = (None, None) if others is None or pairs is None else cuda(2, others, 2, H, D).unbind(2)
            a = Attention(q, k, v, pk, pv, pairs, scale=0.1)
            out, lse = triton_launch.forward("pair_attention", a)
            triton_launch.backward("pair_attention", a, out, out, lse)
        index = cuda(2, M, dtype=torch.int32)
        a = Attention(k, k, v, rows=index, scale=0.1)
        out, lse = triton_launch.forward("local_attention", a)
        triton_launch.backward("local_attention", a, out, out, lse)
        if M == N:
            triton_rollout.launch([q, q], [k, k], [lse, lse], 0.1, None)

    config = launch_table.Config(16, 16, 1, 1)
    with launch_table.forced(
        {(op, d): config for op, directions in launch_table.DIRECTIONS.items() for d in directions}
    ):
        return capture(run, "sm_90")


@pytest.mark.parametrize("sizes", SIZES)
def test_every_specialisation_compiles(sizes: tuple[int, int, int | None, int]) -> None:
    found = {str((x.name, x.signature, x.constexprs, x.attributes)): x for x in launches(*sizes)}
    assert len(found) >= 7
    assert any(
        x.signature[size] == "constexpr" for x in found.values() for size in x.signature if size in SIZE_NAMES
    )
    for launch in found.values():
        assert launch.options["enable_fp_fusion"] is True
        assert launch.compile("sm_90").asm["cubin"]


FUSED = [("sm_80", "ptx", "fma.rn.f32"), ("gfx942", "amdgcn", r"v_(?:pk_)?fma")]


@pytest.mark.parametrize(("arch", "text", "pattern"), FUSED)
def test_no_variable_decides_whether_multiplications_and_additions_are_fused(
    arch: str, text: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(
        launch_table.Key("rollout_row", "step", D, "fp16"), 197, arch, launch_table.Config(32, 32, 4, 1)
    )

    def fused(variable: str) -> int:
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", variable)
        return len(re.findall(pattern, launch_of(job).compile(arch).asm[text]))

    assert fused("0") == fused("1") > 0
    monkeypatch.setattr(triton_launch, "FUSED", {})
    assert fused("0") < fused("1")


def test_a_matrix_instruction_that_blackwell_lacks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    key = launch_table.Key("pair_attention", "forward", D, "fp16")
    job = Job(key, 197, "sm_100", launch_table.Config(128, 64, 4, 2), pairs=False)
    assert examine(launch_of(job).compile(job.arch), job.arch).loops
    monkeypatch.setattr(triton_launch, "least_width", lambda arch: 8)
    with pytest.raises(RuntimeError, match=r"tcgen05\.mma of 128 rows by 8 columns"):
        examine(launch_of(job).compile(job.arch), job.arch)
