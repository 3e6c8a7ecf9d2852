"""The three public operations of DCAL. Each checks its arguments and chooses a backend, never silently."""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import choice, raise_faults, violations
from . import checks, torch_backend
from .attention import Attention
from .pairing import Partners, invert_pairs
from .values import Range, assert_start_row

__all__ = [
    "Attention",
    "Backend",
    "Partners",
    "local_attention",
    "pair_attention",
    "pair_up",
    "reasons_against_triton",
    "rollout_row",
]

Backend = Literal["auto", "triton", "torch"]
BACKENDS = get_args(Backend)


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None = None,
    partner_v: Tensor | None = None,
    partner_index: Tensor | Partners | None = None,
    scale: float | None = None,
    *,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Pair-wise cross-attention: softmax(Q [K; K_partner]ᵀ · scale) [V; V_partner] (DCAL, eq. 5).

    One softmax runs over the keys of the image and those of its partner. Without `partner_index` this is
    plain self-attention. The result is exact and differentiable in q, k, v, partner_k, partner_v and bias;
    without a bias, memory is linear in N.

    Args:
        q: Queries (B, M, H, D), any strides; float16, bfloat16, float32 (float64 on the torch backend).
        k: Keys (B, N, H, D), same dtype and device.
        v: Values, shaped as `k`.
        partner_k: Keys of the partners (B', N', H, D); `k` itself by default.
        partner_v: Values of the partners, shaped as `partner_k`; required with `partner_k`.
        partner_index: The row of `partner_k` that each image is paired with (B,), int32 or int64 in
            [-1, B'); repeats are allowed, -1 means no partner. None: no image has a partner. Pass the result
            of `pair_up` to check and invert the index once for several blocks.
        scale: Factor of the scores, finite and at least 0; 1/√D by default.
        bias: Added to the scores of the own keys and, in the same way, of the partner's: four dimensions that
            broadcast to (B, H, M, N), dtype and device of `q`; -inf hides a key, and each query must keep
            one. With partners N' must be N. Only PyTorch runs it: "auto" takes PyTorch, and "triton" raises.
            Memory: for partners the bias is doubled, (..., 2N), in its own broadcast size. PyTorch's
            attention keeps no map on a CPU if the bias needs no gradient, nor on GPUs where it has a fused
            kernel for a mask. Otherwise the map of (B, H, M, 2N) is kept for the backward pass, as it is for
            dropout with images that have no partner.
        backend: "auto" uses Triton where it can run and PyTorch elsewhere, and another fused attention where
            `dca-triton tune` found it faster on this GPU; "triton" raises where it cannot run.

    Returns:
        The attention (B, M, H, D) and the natural log-sum-exp of the scores (B, H, M), float32 (float64 for
        float64 inputs), which carries no gradient. Both are contiguous.

    Raises:
        ValueError: Wrong shapes, dtypes, devices, index values or scale, every reason at once.
        RuntimeError: backend="triton" cannot run here; the message gives every reason.
    """
    needed, index = {"q": q, "k": k, "v": v}, partner_index
    if isinstance(index, Partners):
        needed |= {"partner_index.partner": index.partner}
        needed |= {"partner_index.readers": index.readers, "partner_index.starts": index.starts}
        index = None
    checks.check_tensors(needed, partner_k=partner_k, partner_v=partner_v, partner_index=index, bias=bias)
    attention = _under_autocast(
        Attention(q, k, v, partner_k, partner_v, partner_index, scale=scale, bias=bias)
    )
    chosen = _choose(backend, checks.pair_attention(attention), *attention[:3], biased=bias is not None)
    checks.assert_indices(attention)
    if (kernel := _faster("pair_attention", attention, backend, chosen)) is not None:
        return torch_backend.pair_attention(attention, kernel=kernel)
    return chosen.pair_attention(attention)


def pair_up(index: Tensor, images: int, unpaired: int = 0) -> Partners:
    """Check and invert an index of partners once for all blocks of a step.

    `pair_attention` takes the result as its partner_index. This costs no host sync.

    Args:
        index: The partner of each row (B,), int32 or int64 in [-1, images); repeats are allowed, -1 means no
            partner.
        images: The number of images to choose from.
        unpaired: The number of leading rows that have no partner, in [0, B]. Where reading the index would
            cost a host sync, PyTorch's code computes no partners for these rows; the kernels never do.

    Raises:
        ValueError: Wrong shape, dtype or values, every reason at once.
    """
    checks.check_tensors({"index": index})
    raise_faults(checks.pair_up(index, images, unpaired))
    Range("index", index, -1, images).assert_values()
    if unpaired:
        Range("index[:unpaired]", index[:unpaired], -1, 0).assert_values()
    # A copy, so that a later change of index cannot make the two disagree.
    return invert_pairs(index.clone(), images, unpaired)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Global-local cross-attention: R selected queries over all keys and values (DCAL, eq. 3).

    Args:
        q: Queries (B, R, H, D), or (B, N, H, D) with `index`; dtypes as in `pair_attention`.
        k: Keys (B, N, H, D).
        v: Values, shaped as `k`.
        index: Rows of `q` to take (B, R), int32 or int64 in [0, q.shape[1]); the kernel gathers them.
        scale: As in `pair_attention`.
        backend: As in `pair_attention`.

    Returns:
        (B, R, H, D), contiguous. Differentiable in q, k and v.

    Raises:
        ValueError: Wrong shapes, dtypes, devices, index values or scale, every reason at once.
        RuntimeError: backend="triton" cannot run here; the message gives every reason.
    """
    checks.check_tensors({"q": q, "k": k, "v": v}, index=index)
    attention = _under_autocast(Attention(q, k, v, rows=index, scale=scale))
    chosen = _choose(backend, checks.local_attention(attention), *attention[:3])
    checks.assert_indices(attention)
    if (kernel := _faster("local_attention", attention, backend, chosen)) is not None:
        return torch_backend.local_attention(attention, kernel=kernel)
    return chosen.local_attention(attention)


@torch.no_grad()
def rollout_row(
    qs: Sequence[Tensor],
    ks: Sequence[Tensor],
    lses: Sequence[Tensor],
    scale: float | None = None,
    row: Tensor | None = None,
    *,
    biases: Sequence[Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """One row of the attention rollout Ŝ = S̄_L ⋯ S̄_1, S̄ = 0.5 mean_h(P_h) + 0.5 I (DCAL, eq. 2).

    From the last layer to the first, r <- 0.5 r + 0.5 mean_h(r P_h). P is recomputed tile by tile from the
    queries, keys and log-sum-exps of the forward pass: O(N) memory per layer and no gradient.

    Args:
        qs: Queries (B, N, H, D) of each layer, first to last; dtypes as in `pair_attention`.
        ks: Keys, shaped as the queries.
        lses: Log-sum-exps (B, H, N) from `pair_attention`, float32 (or float64). Without `row`, the queries
            and log-sum-exps of the last layer may be those of the class token alone, (B, 1, H, D) and
            (B, H, 1).
        scale: As in `pair_attention`.
        row: The row vector to start from (B, N), float32 or float64, finite and >= 0; by default the class
            token's e_0.
        biases: What each layer added to its scores: four dimensions that broadcast to (B, H, N, N), of the
            class token's row alone to (B, H, 1, N). Only PyTorch runs it, as in `pair_attention`; where it
            does not compute tile by tile, on GPUs and compiled, it holds (B, H, N, N) of one layer.
        backend: As in `pair_attention`.

    Returns:
        (B, N), float32, contiguous; each row sums to the sum of the row it started from.

    Raises:
        ValueError: Wrong shapes, dtypes, devices, scale or values of row, every reason at once.
        RuntimeError: backend="triton" cannot run here; the message gives every reason.
    """
    layers = {"qs": qs, "ks": ks, "lses": lses} | ({} if biases is None else {"biases": biases})
    checks.check_sequences(layers)
    named = {f"{name}[{i}]": x for name, layer in layers.items() for i, x in enumerate(layer)}
    checks.check_tensors(named, row=row)
    faults = checks.rollout_row(qs, ks, lses, scale, row, biases)
    chosen = _choose(backend, faults, *qs[:1], *ks[:1], biased=biases is not None)
    if row is not None:
        assert_start_row(row)
    factor = qs[0].shape[-1] ** -0.5 if scale is None else float(scale)
    if biases is not None:
        return torch_backend.rollout_row(list(qs), list(ks), list(lses), factor, row, list(biases))
    return chosen.rollout_row(list(qs), list(ks), list(lses), factor, row)


def reasons_against_triton(*tensors: Tensor) -> list[str]:
    """Every reason why Triton cannot serve these tensors; an empty list if it can."""
    try:
        from . import triton_backend
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dca_triton":
            raise  # this library's own code is broken: do not fall back to PyTorch silently
        return [f"triton cannot be imported ({error})"]
    return triton_backend.reasons_against(*tensors)


def _choose(backend: str, faults: list[str], *tensors: Tensor, biased: bool = False) -> ModuleType:
    """Return the backend that runs; raise every fault of the arguments and every reason against "triton"."""
    if backend not in BACKENDS:
        faults = [*faults, *violations({"backend": backend}, {"backend": choice(*BACKENDS)})]
    if backend == "torch" or (backend != "triton" and not all(x.device.type == "cuda" for x in tensors)):
        raise_faults(faults)
        return torch_backend
    reasons = reasons_against_triton(*(tensors if faults else tensors[:1]))  # sound tensors are alike
    if biased:
        reasons = [*reasons, "a bias of the scores runs on PyTorch only"]
    if forward_ad._current_level >= 0:  # inside torch.func.jvp too; tangents would be lost
        reasons = [*reasons, "the kernels have no derivatives in forward mode"]
    if reasons and backend == "triton":
        message = f"backend='triton' cannot run here: {'; '.join(reasons)}"
        raise_faults([*faults, message] if faults else [])
        raise RuntimeError(message)
    raise_faults(faults)
    if reasons:
        return torch_backend
    from . import triton_backend

    return triton_backend


def _faster(op: str, attention: Attention, backend: Backend, chosen: ModuleType) -> str | None:
    """Another implementation that "auto" takes where the Triton kernels could run."""
    if backend != "auto" or chosen is torch_backend:
        return None
    from .implementations import faster

    return faster(op, attention)


def _under_autocast(attention: Attention) -> Attention:
    """Convert to the lower precision under autocast, as PyTorch's own attention does."""
    device = attention.q.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return attention
    dtype = torch.get_autocast_dtype(device)

    def convert(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return attention.converted(convert)
