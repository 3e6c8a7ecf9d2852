"""The operations on tensors that lie in memory in any way, each drawn at random and independently."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from tolerance import no_further_than_twice_eager, rms
from torch import Tensor

from dca_triton import ops, reference

KINDS = ["dense", "permuted", "sliced", "stepped", "expanded", "windows", "several"]

Case = Callable[..., tuple[list[Tensor], list[Tensor]]]  # results and gradients by a module for some leaves
Layout = Callable[..., Tensor]


def normal(shape: Sequence[int], dtype: torch.dtype, chance: random.Random) -> Tensor:
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def laid_out(
    shape: Sequence[int], dtype: torch.dtype, chance: random.Random, kind: str = "several"
) -> Tensor:
    """Normally distributed values of a shape in a random layout, at a random offset, with NaN around them.

    permuted: the dimensions lie in any order in memory. sliced: there is more around them. stepped: only
    every second or third element of a dimension counts. expanded: some dimensions have a stride of 0.
    windows: any strides, so that elements share memory. several: all of them at once, windows excepted.
    """
    dims = range(len(shape))
    if kind == "windows":
        strides = [chance.randrange(10) for _ in dims]
        elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        return normal([elements], dtype, chance).as_strided(tuple(shape), strides)
    chosen = {kind} if kind != "several" else {"permuted", "sliced", "stepped", "expanded"}
    order = chance.sample(dims, len(shape)) if "permuted" in chosen else list(dims)
    margin = [chance.randrange(3) if "sliced" in chosen else 0 for _ in dims]
    step = [chance.choice([1, 1, 2, 3]) if "stepped" in chosen else 1 for _ in dims]
    once = [d for d in dims if "expanded" in chosen and chance.random() < 0.4]
    sizes = [1 if d in once else n for d, n in enumerate(shape)]
    room = [2 * m + n * s for m, n, s in zip(margin, sizes, step, strict=True)]
    offset = chance.randrange(5)
    memory = torch.full((offset + math.prod(room),), float("nan"), dtype=dtype)
    x = memory[offset:].view([room[d] for d in order]).permute([order.index(d) for d in dims])
    for d in dims:
        x = x.narrow(d, margin[d], sizes[d] * step[d])
    x = x[tuple(slice(None, None, s) for s in step)]
    x.copy_(normal(sizes, dtype, chance))
    return x.expand(tuple(shape))


def gradients(out: Tensor, leaves: Sequence[Tensor], dout: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out, leaves, dout.to(out.dtype), materialize_grads=True))


def pairs(layout: Layout, chance: random.Random, head_dims: Sequence[int]) -> tuple[Case, list[Tensor]]:
    """pair_attention without partners, with partners of the batch, or with those of another batch."""
    B, M, N, H = (chance.choice(some) for some in ([1, 3], [1, 5, 18], [1, 5, 18], [1, 2]))
    D = chance.choice(head_dims)
    others, P = chance.choice([1, 2, 4]), chance.choice([1, 4, 17])
    kind = chance.choice(["alone", "batch", "others"])
    count = others if kind == "others" else B
    index = torch.tensor([chance.randrange(-1, count) for _ in range(B)], dtype=torch.int32)
    index = index.repeat_interleave(2)[::2]
    leaves = [layout((B, M, H, D)), layout((B, N, H, D)), layout((B, N, H, D))]
    if kind == "others":
        leaves += [layout((others, P, H, D)) for _ in range(2)]
    dout = layout((B, M, H, D))

    def case(module: object, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        partners = leaves[3:] or [None, None]
        out, lse = module.pair_attention(*leaves[:3], *partners, None if kind == "alone" else index, 0.1)
        return [out, lse], gradients(out, leaves, dout)

    return case, leaves


def local(layout: Layout, chance: random.Random, head_dims: Sequence[int]) -> tuple[Case, list[Tensor]]:
    """local_attention with an index, repeats included, or without one."""
    B, N, H, D = (chance.choice(some) for some in ([1, 3], [1, 5, 18], [1, 2], head_dims))
    M, R = chance.choice([1, 7]), chance.choice([1, 9])
    index = torch.randint(M, (R, B), generator=torch.Generator().manual_seed(chance.randrange(99))).T
    index = index if chance.random() < 0.7 else None
    leaves = [layout((B, M, H, D)), layout((B, N, H, D)), layout((B, N, H, D))]
    dout = layout((B, M if index is None else R, H, D))

    def case(module: object, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        out = module.local_attention(*leaves, index, 0.1)
        return [out], gradients(out, leaves, dout)

    return case, leaves


def rollout(layout: Layout, chance: random.Random, head_dims: Sequence[int]) -> tuple[Case, list[Tensor]]:
    """rollout_row over one or two layers, from the class token, also by its query alone, or a given row."""
    B, N, H, D, L = (chance.choice(some) for some in ([1, 3], [1, 5, 18], [1, 2], head_dims, [1, 2]))
    leaves = [layout((B, N, H, D)) for _ in range(2 * L)]
    lses = []
    for q, k in zip(leaves[:L], leaves[L:], strict=True):
        lse = laid_out((B, H, N), torch.float32, chance, chance.choice(["dense", "permuted", "stepped"]))
        lses.append(lse.copy_(reference.attention_scores(q.double(), k.double(), 0.3).logsumexp(-1)))
    start = laid_out((B, N), torch.float32, chance, chance.choice(["dense", "permuted", "stepped"])).abs_()
    start = None if chance.random() < 0.5 else start
    if start is None and chance.random() < 0.5:
        leaves[L - 1], lses[-1] = leaves[L - 1][:, :1], lses[-1][:, :, :1]

    def case(module: object, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        dtype = leaves[0].dtype if module is reference else torch.float32
        row = None if start is None else start.to(dtype)
        with torch.no_grad():
            return [module.rollout_row(leaves[:L], leaves[L:], [x.to(dtype) for x in lses], 0.3, row)], []

    return case, leaves


def agrees(
    operation: Callable[..., tuple[Case, list[Tensor]]],
    seed: int,
    dtype: torch.dtype,
    backend: str,
    head_dims: Sequence[int],
) -> None:
    """Results are contiguous and as exact as the formula in the same dtype; inputs stay as they are."""
    chance = random.Random(seed)
    case, leaves = operation(
        lambda shape, dtype=dtype: laid_out(shape, dtype, chance, chance.choice(KINDS)), chance, head_dims
    )
    before = [x.clone() for x in leaves]
    names = "pair_attention", "local_attention", "rollout_row"
    tested = SimpleNamespace(**{name: partial(getattr(ops, name), backend=backend) for name in names})
    results, gradients = case(tested, [x.detach().requires_grad_() for x in leaves])
    rounded = results[0].dtype if dtype == torch.float64 else dtype  # a rollout is always float32
    eager, exact = (
        case(reference, [x.detach().to(precision).requires_grad_() for x in leaves])
        for precision in (rounded, torch.float64)
    )
    assert all(x.is_contiguous() for x in results)
    values = None
    if gradients:  # one of them may cancel to 0, and equal features of an expanded D add up
        values = max([*leaves, *exact[0], *exact[1]], key=rms).double()
        values = values * leaves[0].shape[-1] if dtype in (torch.float32, torch.float64) else values
    for kind, *parts in zip(("result", "gradient"), (results, gradients), eager, exact, strict=True):
        for i, trio in enumerate(zip(*parts, strict=True)):
            no_further_than_twice_eager(*trio, rounded, f"{kind} {i}", values)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
