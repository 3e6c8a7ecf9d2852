"""Every launch that the tuner may choose gives the same bits where the order of additions cannot matter.

Triton's `fpsan` instrumentation replaces floating-point numbers by integers modulo a power of 2: sums and
products are exact, and exp2 turns sums into products. Two launches that still differ compute another formula;
one of them leaves out a key, for example.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import triton
from attention_cases import packed
from launches import GROUPS, group
from torch import Tensor
from triton.runtime.errors import OutOfResources

from dca_triton.ops import Attention, launch_table, triton_launch, triton_rollout
from dca_triton.ops.pairing import invert_pairs

AMD = {"gfx942", "gfx950", "gfx1250"}  # Triton ignores the instrumentation on others


def instrumentable() -> bool:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    arch = launch_table.gpu_of(torch.device("cuda", 0)).arch if torch.cuda.is_available() else ""
    return version >= (3, 8) and (arch.startswith("sm_") or arch in AMD)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.driver,
    pytest.mark.skipif(not instrumentable(), reason="needs Triton 3.8 and a GPU that it instruments"),
]

B, N, H, D, L = 2, 147, 1, 16, 2  # whole tiles and a remainder for every tile
# Times log2(e) this is 1 in that arithmetic. The forward multiplies the maxima of its tiles by it, and where
# numbers wrap around, the largest product by another factor is not that of the largest maximum.
SCALE = 1.1162611e16
ANY = launch_table.Config(32, 32, 4, 1)


@contextmanager
def exact() -> Iterator[None]:
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.instrumentation_mode = "fpsan"
        yield


def bits(results: list[Tensor]) -> list[Tensor]:
    """As integers, because most bits of an exact result are no number."""
    return [x.contiguous().view(torch.int32 if x.element_size() == 4 else torch.int16) for x in results]


def run(op: str, dtype: torch.dtype, config: launch_table.Config, scale: float = SCALE) -> list[Tensor]:
    """Rollout's row, or out and then the gradients for a log-sum-exp and an output that are given."""
    q, k, v = packed(B, N, 3, H, D, dtype, "cuda", 0).unbind(2)
    lse, given, dout = packed(B, N, 3, H, D, dtype, "cuda", 1).unbind(2)
    lse = lse[..., 0].transpose(1, 2).float()
    with launch_table.forced({(op, direction): config for direction in launch_table.DIRECTIONS[op]}):
        if op == "rollout_row":
            return bits([triton_rollout.launch([q] * L, [k] * L, [lse] * L, scale, None)])
        if op == "pair_attention":
            a = Attention(q, k, v, pairs=invert_pairs(torch.tensor([1, 0], device="cuda"), B), scale=scale)
        else:
            a = Attention(q, k, v, rows=torch.arange(N - 1, 0, -1, device="cuda").repeat(B, 1), scale=scale)
            lse, given, dout = lse[..., 1:], given[:, 1:], dout[:, 1:]
        out, _ = triton_launch.forward(op, a)
        return bits([out, *triton_launch.backward(op, a, dout, given, lse)])


def equal(results: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("op", launch_table.DIRECTIONS)
@pytest.mark.parametrize(
    ("name", "warps", "stages"),
    [g for g in GROUPS if g[0] != "bf16"],  # which has the candidates of fp16
)
def test_every_launch_gives_the_same_bits(op: str, name: str, warps: int, stages: int) -> None:
    dtype, fit = launch_table.DTYPES[name], 0
    with exact():
        expected = run(op, dtype, ANY)
        for config in group(name, warps, stages):
            try:
                assert equal(run(op, dtype, config), expected), config
            except OutOfResources:
                continue
            fit += 1
    assert fit > 0


@pytest.mark.parametrize("op", launch_table.DIRECTIONS)
def test_rounding_tells_launches_apart(op: str) -> None:
    """Without the instrumentation the comparison finds differences, and so it does between the two modes."""
    tiles = [launch_table.Config(*tile, 4, 1) for tile in itertools.product((16, 32), (16, 32))]
    plain = [run(op, torch.float32, tile, scale=0.25) for tile in tiles]
    assert not all(equal(results, plain[0]) for results in plain)
    with exact():
        assert not equal(run(op, torch.float32, tiles[0], scale=0.25), plain[0])
