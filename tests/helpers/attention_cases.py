"""What the attention kernels must satisfy on any device: interpreted on a CPU, or run on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from called_operators import CalledOperators
from tolerance import no_further_than_twice_eager
from torch import Tensor

from dca_triton import reference
from dca_triton.ops import Attention, operators, triton_backend


@dataclass(frozen=True)
class Pairs:
    """B images of M queries over N keys and those of partners: in the batch, or `others` = (B', N')."""

    B: int
    N: int
    H: int
    D: int
    partner: tuple[int, ...] | None = None
    others: tuple[int, int] | None = None
    M: int | None = None


@dataclass(frozen=True)
class Local:
    """R of N queries, all where R is None, over N keys; `repeats` takes each selected row twice."""

    B: int
    N: int
    H: int
    D: int
    R: int | None = None
    repeats: bool = False


PAIRS = [  # every D; lengths below, at and past the tiles; partners permuted, repeated, absent, all the same
    Pairs(2, 1, 2, 16),
    Pairs(2, 1, 1, 32, (1, 0)),
    Pairs(3, 16, 1, 32, (1, 2, 0)),
    Pairs(3, 63, 1, 48, (1, -1, 1)),
    Pairs(2, 65, 2, 64),
    Pairs(3, 65, 1, 64, (2, 2, 2)),
    Pairs(2, 129, 1, 80, (1, 0)),
    Pairs(1, 197, 1, 96),
    Pairs(2, 197, 1, 64, (1, -1)),
    Pairs(2, 33, 1, 128, (2, 0), others=(3, 50)),
    Pairs(3, 63, 1, 32, (-1, 1, 1), others=(2, 129)),
    Pairs(2, 65, 2, 64, (1, 0), M=1),
    Pairs(2, 65, 2, 72, (1, 0)),
    Pairs(1, 33, 3, 76),
    Pairs(2, 17, 2, 88, (1, -1)),
    Pairs(1, 16, 2, 104),
    Pairs(1, 17, 2, 112),
]
LOCAL = [
    Local(2, 65, 2, 32),
    Local(32, 129, 1, 32, R=1),
    Local(1, 197, 2, 64, R=65),
    Local(2, 63, 1, 48, R=20, repeats=True),
    Local(1, 16, 1, 128, R=16),
    Local(2, 65, 1, 16, R=7),
    Local(1, 63, 1, 80, R=33),
    Local(1, 65, 1, 96, R=3),
    Local(1, 65, 2, 76, R=9),
]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill uninitialized memory with NaN, so that unwritten results are detected."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def packed(B: int, N: int, parts: int, H: int, D: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """A projection (B, N, parts, H, D) that is a view, with NaN beyond its last row."""
    generator = torch.Generator().manual_seed(seed)
    storage = torch.full((B, N + 1, parts, H, D), float("nan"), dtype=dtype)
    storage[:, :N] = torch.randn(B, N, parts, H, D, generator=generator).to(dtype)
    return storage.to(device)[:, :N]


def leaves_of(case: Pairs | Local, dtype: torch.dtype, device: str) -> list[Tensor]:
    leaves = [packed(case.B, case.N, 3, case.H, case.D, dtype, device, 0)]
    if isinstance(case, Pairs) and case.others is not None:
        leaves.append(packed(*case.others, 2, case.H, case.D, dtype, device, 1))
    return leaves


def indices_of(case: Pairs | Local, device: str) -> Tensor | None:
    if isinstance(case, Pairs):
        return (
            None
            if case.partner is None
            else strided(
                torch.tensor(case.partner, dtype=torch.int32 if case.others else torch.int64), device
            )
        )
    if case.R is None:
        return None
    generator = torch.Generator().manual_seed(2)
    rows = torch.stack([torch.randperm(case.N, generator=generator)[: case.R] for _ in range(case.B)])
    return strided(torch.cat([rows, rows], 1) if case.repeats else rows, device)


def strided(x: Tensor, device: str) -> Tensor:
    """The same values, every other element of memory, with indices between them that no kernel may follow."""
    return torch.stack([x, torch.full_like(x, 2**30)], -1).to(device)[..., 0]


def attend(backend: ModuleType, case: Pairs | Local, leaves: list[Tensor], scale: float) -> list[Tensor]:
    """out and, for pairs, lse by `dca_triton.reference` or the Triton backend."""
    q, k, v = leaves[0].unbind(2)
    indices = indices_of(case, str(q.device))
    if isinstance(case, Local):
        if backend is reference:
            return [reference.local_attention(q, k, v, indices, scale)]
        return [backend.local_attention(Attention(q, k, v, rows=indices, scale=scale))]
    partner_k, partner_v = leaves[1].unbind(2) if len(leaves) > 1 else (None, None)
    q = q if case.M is None else q[:, : case.M]
    if backend is reference:
        return list(reference.pair_attention(q, k, v, partner_k, partner_v, indices, scale))
    return list(backend.pair_attention(Attention(q, k, v, partner_k, partner_v, indices, scale=scale)))


def with_gradients(
    backend: ModuleType,
    case: Pairs | Local,
    leaves: list[Tensor],
    weights: Tensor | None = None,
    scale: float | None = None,
) -> list[Tensor]:
    """What `attend` returns, then each leaf's gradient for the gradient `weights` of out (default: ones).

    The scale is 1.5 / √D by default, which is not that of the operations.
    """
    leaves = [x.detach().requires_grad_() for x in leaves]
    results = attend(backend, case, leaves, 1.5 * case.D**-0.5 if scale is None else scale)
    out = results[0]
    loss = out.sum() if weights is None else (out * weights.to(out.dtype)).sum()
    return [x.detach() for x in results] + list(torch.autograd.grad(loss, leaves))


def weights_of(case: Pairs | Local, device: str) -> Tensor:
    rows = case.M if isinstance(case, Pairs) else case.R and case.R * (1 + case.repeats)
    shape = case.B, rows or case.N, case.H, case.D
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device)


def errors_are_those_of_the_dtype(
    case: Pairs | Local, dtype: torch.dtype, device: str, apart: float = 0.0, scale: float | None = None
) -> None:
    """No result is over twice as far from float64 as the eager formula in its dtype, or a few ulps.

    `apart` moves queries up and keys down by as much, so that all scores and lse lie far below zero.
    """
    leaves, weights = leaves_of(case, dtype, device), weights_of(case, device).to(dtype)
    leaves[0][:, :, 0] += apart
    leaves[0][:, :, 1] -= apart
    exact = with_gradients(reference, case, [x.double() for x in leaves], weights, scale)
    eager = with_gradients(reference, case, leaves, weights, scale)
    with poisoned():
        results = with_gradients(triton_backend, case, leaves, weights, scale)
    for name, result, plain, expected in zip(names(case, len(leaves)), results, eager, exact, strict=True):
        no_further_than_twice_eager(result, plain, expected, dtype, name)


def names(case: Pairs | Local, leaves: int) -> list[str]:
    return (["out", "lse"] if isinstance(case, Pairs) else ["out"]) + ["gradient", "partners' gradient"][
        :leaves
    ]


def backward_is_bit_equal(case: Pairs | Local, dtype: torch.dtype, device: str) -> None:
    leaves, weights = leaves_of(case, dtype, device), weights_of(case, device)
    first, second = (with_gradients(triton_backend, case, leaves, weights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def operators_do_what_direct_calls_do(case: Pairs | Local, dtype: torch.dtype, device: str) -> None:
    """The same bits, whether the call passes PyTorch's dispatcher or not."""
    leaves, weights = leaves_of(case, dtype, device), weights_of(case, device)
    with mock.patch.multiple(operators, _attention=None, _attention_backward=None):
        direct = with_gradients(triton_backend, case, leaves, weights)
    with CalledOperators() as called:
        dispatched = with_gradients(triton_backend, case, leaves, weights)
    assert {"dca_triton.attention.default", "dca_triton.attention_backward.default"} <= called.names.keys()
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))
    with torch.no_grad():
        alone = attend(triton_backend, case, leaves, 1.5 * case.D**-0.5)
    assert all(torch.equal(a, b) for a, b in zip(alone, direct, strict=False))


def undefined_gradient_is_taken(device: str) -> None:
    """A function behind the attention may have no gradient for it."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, out: Tensor, other: Tensor) -> Tensor:
            return out.sum() + other.sum()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
            return None, gradient.expand(3)

    q, k, v = (torch.randn(1, 5, 1, 16, device=device, requires_grad=True) for _ in range(3))
    other = torch.ones(3, device=device, requires_grad=True)
    out, _ = triton_backend.pair_attention(Attention(q, k, v, scale=0.25))
    Stop.apply(out, other).backward()
    assert q.grad is None
    assert other.grad is not None


def second_derivatives_are_refused(case: Pairs | Local, device: str) -> None:
    """Also where the gradient of out needs none itself, as that of a sum."""
    (leaf,) = (x.requires_grad_() for x in leaves_of(case, torch.float32, device))
    out = attend(triton_backend, case, [leaf], 0.25)[0]
    (first,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="dca_triton"):
        torch.autograd.grad(first.square().sum() + leaf.sum(), leaf)


def expanded_gradient_is_taken(case: Pairs | Local, dtype: torch.dtype, device: str) -> None:
    """out.sum() hands the backward a gradient with strides of 0."""
    leaves = leaves_of(case, dtype, device)
    ones = torch.ones_like(weights_of(case, device))
    expanded, dense = (with_gradients(triton_backend, case, leaves, w) for w in (None, ones))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def layout_does_not_count(case: Pairs, dtype: torch.dtype, device: str) -> None:
    """Dense inputs, and inputs whose D is not the last in memory, give what the projection gives."""
    (leaf,) = leaves_of(case, dtype, device)
    transposed = leaf.transpose(1, -1).contiguous().transpose(1, -1)
    assert transposed.stride(-1) != 1
    results = [attend(triton_backend, case, [x], 0.1) for x in (leaf, leaf.contiguous(), transposed)]
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def lse_has_no_gradient(device: str) -> None:
    q, k, v = (torch.randn(1, 5, 1, 16, device=device, requires_grad=True) for _ in range(3))
    out, lse = triton_backend.pair_attention(Attention(q, k, v, scale=0.25))
    assert out.requires_grad
    assert not lse.requires_grad
    assert lse.dtype == torch.float32


def directional_derivatives_agree(device: str) -> None:
    """A probe that needs no reference: (f(x + h d) - f(x - h d)) / 2h against the gradient along d."""
    case = Pairs(2, 33, 1, 32, (1, 0))
    (leaf,), weights = leaves_of(case, torch.float32, device), weights_of(case, device)
    gradient = with_gradients(triton_backend, case, [leaf], weights)[-1].double()
    noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(4)).to(device)
    direction = gradient / gradient.norm() + noise / noise.norm()

    def loss(step: float) -> Tensor:
        out = attend(triton_backend, case, [(leaf + step * direction).float()], 1.5 * case.D**-0.5)[0]
        return (out.double() * weights).sum()

    difference = (loss(1e-2) - loss(-1e-2)) / 2e-2
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-3, atol=0)
