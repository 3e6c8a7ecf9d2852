"""The three public operations of DCAL: checked arguments, one backend chosen, no silent fallback."""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from . import checks, torch_backend
from .partners import Partners, partners

__all__ = [
    "Backend",
    "Partners",
    "local_attention",
    "pair_attention",
    "partners",
    "reasons_against_triton",
    "rollout_row",
]

Backend = Literal["auto", "triton", "torch"]


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None = None,
    partner_v: Tensor | None = None,
    partner_index: Tensor | Partners | None = None,
    scale: float | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Pair-wise cross-attention: softmax(Q [K; K_partner]ᵀ · scale) [V; V_partner] (DCAL, eq. 5).

    One softmax runs over the keys of the image and those of its partner. Without `partner_index` it is plain
    self-attention. Exact, differentiable in q, k, v, partner_k and partner_v, with memory linear in N.

    Args:
        q: Queries (B, M, H, D), any strides; float16, bfloat16, float32 (float64 on the torch backend).
        k: Keys (B, N, H, D), same dtype and device.
        v: Values, shaped as `k`.
        partner_k: Keys of the partners (B', N', H, D); `k` itself by default.
        partner_v: Values of the partners, shaped as `partner_k`; given exactly when `partner_k` is.
        partner_index: Which row of `partner_k` each image is paired with (B,), int32 or int64 in [-1, B');
            repeats are allowed, -1 means no partner. None: nobody has a partner. Several blocks with the same
            partners share the work of checking and inverting it when given what `partners` returns.
        scale: Factor of the scores, finite and at least 0; 1/√D by default.
        backend: "auto" takes Triton where it can run and PyTorch elsewhere; "triton" raises where it cannot.

    Returns:
        The attention (B, M, H, D) and the natural log-sum-exp of the scores (B, H, M), float32 (float64 for
        float64 inputs), which carries no gradient. Both are contiguous.

    Raises:
        ValueError: Shapes, dtypes, devices, index values or a scale that do not fit, every reason at once.
        RuntimeError: backend="triton" cannot run, with every reason.
    """
    images: int | None = None
    image: Tensor | None
    if isinstance(partner_index, Partners):
        checks.check_tensors({f"partner_index.{x}": value for x, value in partner_index._asdict().items()})
        image, images = partner_index.image, partner_index.first.numel() - 1
    else:
        image = partner_index
    checks.check_tensors(
        {"q": q, "k": k, "v": v}, partner_k=partner_k, partner_v=partner_v, partner_index=image
    )
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    partner_k = None if partner_k is None else _autocast(partner_k)
    partner_v = None if partner_v is None else _autocast(partner_v)
    faults = checks.pair_attention(q, k, v, partner_k, partner_v, image, images, scale)
    chosen = _choose(backend, faults, q, k, v)
    given = image if chosen is torch_backend else partner_index
    return chosen.pair_attention(q, k, v, partner_k, partner_v, given, _scale(scale, q))


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
        index: Rows of `q` to take (B, R), int32 or int64 in [0, q.shape[1]); gathered inside the kernel.
        scale: As in `pair_attention`.
        backend: As in `pair_attention`.

    Returns:
        (B, R, H, D), contiguous. Differentiable in q, k and v.

    Raises:
        ValueError: Shapes, dtypes, devices, index values or a scale that do not fit, every reason at once.
        RuntimeError: backend="triton" cannot run, with every reason.
    """
    checks.check_tensors({"q": q, "k": k, "v": v}, index=index)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    chosen = _choose(backend, checks.local_attention(q, k, v, index, scale), q, k, v)
    return chosen.local_attention(q, k, v, index, _scale(scale, q))


@torch.no_grad()
def rollout_row(
    qs: Sequence[Tensor],
    ks: Sequence[Tensor],
    lses: Sequence[Tensor],
    scale: float | None = None,
    row: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """One row of the attention rollout Ŝ = S̄_L ⋯ S̄_1, S̄ = 0.5 mean_h(P_h) + 0.5 I (DCAL, eq. 2).

    From the last layer to the first, r <- 0.5 r + 0.5 mean_h(r P_h), with P recomputed tile by tile from the
    queries, keys and log-sum-exps that the forward pass left: O(N) memory a layer and no gradient.

    Args:
        qs: Queries (B, N, H, D) of each layer, first to last; dtypes as in `pair_attention`.
        ks: Keys, shaped as the queries.
        lses: Log-sum-exps (B, H, N) from `pair_attention`, float32 (or float64).
        scale: As in `pair_attention`.
        row: The row vector to start from (B, N), float32 or float64, finite and nowhere negative; by default
            the class token's e_0.
        backend: As in `pair_attention`.

    Returns:
        (B, N), float32, contiguous; each row sums to the sum of the row it started from.

    Raises:
        ValueError: Shapes, dtypes, devices, a scale or values of row that do not fit, every reason at once.
        RuntimeError: backend="triton" cannot run, with every reason.
    """
    layers = {"qs": qs, "ks": ks, "lses": lses}
    checks.check_sequences(layers)
    named = {f"{name}[{i}]": x for name, layer in layers.items() for i, x in enumerate(layer)}
    checks.check_tensors(named, row=row)
    faults = checks.rollout_row(qs, ks, lses, scale, row)
    chosen = _choose(backend, faults, *qs[:1], *ks[:1])
    return chosen.rollout_row(list(qs), list(ks), list(lses), _scale(scale, qs[0]), row)


def reasons_against_triton(*tensors: Tensor) -> list[str]:
    """Every reason why Triton cannot serve these tensors; an empty list if it can."""
    try:
        from . import triton_backend
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dca_triton":
            raise  # this library's own code is broken: PyTorch must not take over in silence
        return [f"triton cannot be imported ({error})"]
    return triton_backend.reasons_against(*tensors)


def _choose(backend: str, faults: list[str], *tensors: Tensor) -> ModuleType:
    """The backend that runs; raises every fault of the arguments and every reason against the one wanted."""
    if backend not in ("auto", "triton", "torch"):
        faults.append(f"backend is {backend!r}; allowed are 'auto', 'triton' and 'torch'")
    capable = backend == "triton" or (backend == "auto" and all(x.device.type == "cuda" for x in tensors))
    reasons = reasons_against_triton(*tensors) if capable else []
    refusal = (
        [f"backend='triton' cannot run here: {'; '.join(reasons)}"] if reasons and backend == "triton" else []
    )
    if faults:
        raise ValueError("; ".join(dict.fromkeys(faults + refusal)))
    if refusal:
        raise RuntimeError(refusal[0])
    if not capable or reasons:
        return torch_backend
    from . import triton_backend

    return triton_backend


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)


def _autocast(x: Tensor) -> Tensor:
    """Under autocast, attention runs in the lower precision, as PyTorch's own does."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if enabled and castable else x
