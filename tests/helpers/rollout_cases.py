"""What the rollout kernels must satisfy on any device: interpreted on a CPU, or run on a GPU."""

import torch
from called_operators import CalledOperators
from tolerance import no_further_than_twice_eager, rms
from torch import Tensor

from dca_triton import reference
from dca_triton.ops import triton_rollout

CASES = [  # B, N, H, D, L: every D; lengths below, at and past the tiles, none a multiple of all of them
    (1, 1, 2, 16, 2),
    (2, 16, 1, 32, 3),
    (2, 63, 2, 48, 2),
    (1, 65, 3, 64, 2),
    (1, 129, 2, 80, 2),
    (2, 197, 1, 96, 1),
    (1, 64, 2, 128, 2),
    (1, 197, 2, 64, 2),
    (1, 65, 2, 72, 2),
    (1, 17, 2, 76, 1),
    (1, 33, 2, 88, 1),
    (1, 16, 2, 104, 1),
    (1, 17, 2, 112, 1),
]


def blocks(
    B: int, N: int, H: int, D: int, L: int, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """q, k and lse of L blocks: strided views of packed projections, with NaN beyond them."""
    generator = torch.Generator().manual_seed(seed)
    qs, ks, lses = [], [], []
    for _ in range(L):
        packed = torch.full((B, N + 1, 3, H, D), float("nan"), dtype=dtype)
        packed[:, :N, :2] = 2 * torch.randn(B, N, 2, H, D, generator=generator).to(dtype)
        q, k, _ = packed.to(device)[:, :N].unbind(2)
        qs.append(q)
        ks.append(k)
        lses.append(reference.attention_scores(q.double(), k.double()).logsumexp(-1).float())
    return qs, ks, lses


def exact(qs: list[Tensor], ks: list[Tensor], lses: list[Tensor], row: Tensor | None = None) -> Tensor:
    """The same in float64."""
    wide = ([x.double() for x in xs] for xs in (qs, ks, lses))
    return reference.rollout_row(*wide, row=None if row is None else row.double())


def error_is_that_of_the_dtype(case: tuple[int, int, int, int, int], dtype: torch.dtype, device: str) -> None:
    """At most twice the error of the eager formulation in the same dtype, or a few ulps."""
    qs, ks, lses = blocks(*case, dtype, device)
    expected = exact(qs, ks, lses)
    start = torch.zeros(case[:2], device=device)
    start[:, 0] = 1
    eager = reference.rollout_row(qs, ks, lses, row=start)
    row = triton_rollout.rollout_row(qs, ks, lses, case[3] ** -0.5, None)
    assert row.dtype == torch.float32
    size = torch.stack([rms(lse) for lse in lses]).max()  # a weight's error is exp(score - lse) ulps of lse
    no_further_than_twice_eager(row, eager, expected, dtype, values=expected * size)


def start_row_and_scale_count(dtype: torch.dtype, device: str, scale: float) -> None:
    """A given start, zeros and several tokens in it, and a scale that is not the default."""
    qs, ks, lses = blocks(2, 70, 2, 32, 2, dtype, device)
    row = torch.rand(2, 70, generator=torch.Generator().manual_seed(1)).to(device)
    row[:, ::3] = 0
    lses = [
        reference.attention_scores(q.double(), k.double(), scale).logsumexp(-1).float()
        for q, k in zip(qs, ks, strict=True)
    ]
    wide = ([x.double() for x in xs] for xs in (qs, ks, lses))
    expected = reference.rollout_row(*wide, scale=scale, row=row.double())
    result = triton_rollout.rollout_row(qs, ks, lses, scale, row)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.sum(1), row.sum(1))


def runs_are_bit_equal_and_leave_inputs_alone(dtype: torch.dtype, device: str) -> None:
    """The same bits twice, a start row that is a strided view, and no input written to."""
    qs, ks, lses = blocks(2, 65, 3, 48, 2, dtype, device)
    row = torch.rand(65, 2, generator=torch.Generator().manual_seed(1)).to(device).T
    kept = row.clone()
    first = triton_rollout.rollout_row(qs, ks, lses, 0.2, row)
    assert torch.equal(first, triton_rollout.rollout_row(qs, ks, lses, 0.2, row))
    assert torch.equal(row, kept)
    wide = triton_rollout.rollout_row(qs, ks, [lse.double() for lse in lses], 0.2, row.double())
    assert wide.dtype == torch.float32
    assert torch.equal(first, wide)
    dense = [x.contiguous() for x in qs]
    assert torch.equal(first, triton_rollout.rollout_row(dense, ks, lses, 0.2, row))


def operator_does_what_a_direct_call_does(dtype: torch.dtype, device: str) -> None:
    """The same bits, whether the call passes PyTorch's dispatcher or not."""
    qs, ks, lses = blocks(2, 65, 3, 48, 2, dtype, device)
    direct = triton_rollout.rollout_row(qs, ks, lses, 0.2, None)
    with CalledOperators() as called:
        dispatched = triton_rollout.rollout_row(qs, ks, lses, 0.2, None)
    assert "dca_triton.rollout_row.default" in called.names
    assert torch.equal(direct, dispatched)


def transposed_inputs_are_taken(dtype: torch.dtype, device: str) -> None:
    """A last stride that is not 1."""
    qs, ks, lses = blocks(1, 33, 2, 16, 1, dtype, device)
    turned = [q.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0) for q in qs]
    assert turned[0].stride(-1) != 1
    scale = 0.25
    expected = triton_rollout.rollout_row(qs, ks, lses, scale, None)
    assert torch.equal(triton_rollout.rollout_row(turned, ks, lses, scale, None), expected)
