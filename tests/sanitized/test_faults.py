"""The sanitizer sees the faults it is there for, planted into launches of a kernel of this library."""

import pytest
import torch
import triton
from dca_triton.kernels.attention_forward import attention_forward
from torch import Tensor
from ttsem.sanitize import KernelFault

from dca_triton import reference

B, N, H, D, TILE = 2, 50, 2, 16, 16  # four tiles a head
PROGRAMS = triton.cdiv(N, TILE) * B * H


@pytest.fixture
def qkv() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, N, H, D, device="cuda") for _ in range(3)]


def launch(qkv: list[Tensor], out: Tensor, tokens: int = N, programs: int = PROGRAMS) -> Tensor:
    """Attention of the first `tokens` queries over as many keys, as the first `programs` tiles."""
    q, k, v = qkv
    lse = torch.empty(B, H, tokens, device="cuda")
    strides = [stride for x in qkv for stride in x.stride()[:3]]
    attention_forward[(programs,)](
        q, k, v, None, None, None, None, out, lse, 0.25, *strides, *[0] * 6, tokens, tokens, tokens, H,
        D=D, DP=D, BM=TILE, BN=TILE, ONES=8, PRECISION="ieee", num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


def test_a_sound_launch_passes(qkv: list[Tensor]) -> None:
    out = launch(qkv, torch.empty_like(qkv[0]))
    torch.testing.assert_close(out, reference.pair_attention(*qkv, scale=0.25)[0])


def test_a_read_past_the_end(qkv: list[Tensor]) -> None:
    with pytest.raises(KernelFault, match=r"reads .* past the end"):
        launch(qkv, torch.empty_like(qkv[0]), tokens=N + 1)


def test_a_write_past_the_end(qkv: list[Tensor]) -> None:
    with pytest.raises(KernelFault, match=r"writes .* past the end of the tensor passed as `p_out`"):
        launch(qkv, torch.empty(B, N - 1, H, D, device="cuda"))


def test_a_race(qkv: list[Tensor]) -> None:
    """The output lies over the keys, which programs of other tiles still read."""
    with pytest.raises(KernelFault, match=r"program instances .* both touch element"):
        launch(qkv, qkv[1])


def test_an_unwritten_tile(qkv: list[Tensor]) -> None:
    out = launch(qkv, torch.empty_like(qkv[0]), programs=PROGRAMS - 1)
    unwritten = out.isnan().all(-1)
    assert unwritten.sum() == N % TILE
    assert unwritten[-1, -(N % TILE) :, -1].all()
