"""The three operations in plain PyTorch: any device, linear memory, differentiable by autograd."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Attention
from .fused import CHUNK, adjacent, attention_with_lse, in_rows, row_chunks
from .pairing import Partners

LOG2E = math.log2(math.e)


def pair_attention(a: Attention, dropout: float = 0.0, kernel: str | None = None) -> tuple[Tensor, Tensor]:
    """As `dca_triton.pair_attention`, for checked arguments.

    dropout: The share of attention probabilities to drop. kernel: As in `attention_with_lse`.
    """
    q, k, v, index, scale, bias = a.q, a.k, a.v, a.partner_index, a.factor, a.bias
    if index is None:
        return attention_with_lse(q, k, v, scale, bias, dropout, kernel)
    rows = index.shape[0]
    # Leading rows without a partner, as SA's rows in a model's step, need neither a mask nor other keys.
    if torch.compiler.is_compiling() or index.device.type != "cpu":  # reading it would cost a host sync
        partners = None
        alone = a.pairs.unpaired if isinstance(a.pairs, Partners) else 0
    else:
        partners = index.tolist()
        alone = next((row for row, partner in enumerate(partners) if partner >= 0), rows)
    if alone == rows:
        return attention_with_lse(q, k, v, scale, bias, dropout, kernel)
    # The gradient of a split is one copy; that of slices would be a sum of padded ones.
    qs, ks, vs = (x.split([alone, rows - alone]) if alone else (x,) for x in (q, k, v))
    # A bias of batch size 1 is that of every image.
    own, theirs = (bias, bias) if bias is None or len(bias) == 1 else (bias[:alone], bias[alone:])
    if partners is None:
        paired = _unread_pairs(a, alone, qs[-1], ks[-1], vs[-1], theirs, dropout, kernel)
    else:
        keys, values = _pairs(ks, a.partner_k, partners[alone:]), _pairs(vs, a.partner_v, partners[alone:])
        mask = None if theirs is None else _twice(theirs, k)
        if -1 in partners[alone:]:
            mask = _partner_mask(index[alone:], k, keys, theirs)
        paired = attention_with_lse(qs[-1], keys, values, scale, mask, dropout, kernel)
    if not alone:
        return paired
    unpaired = attention_with_lse(qs[0], ks[0], vs[0], scale, own, dropout, kernel)
    out, lse = (torch.cat(both) for both in zip(unpaired, paired, strict=True))
    return out, lse


def local_attention(a: Attention, kernel: str | None = None) -> Tensor:
    """As `dca_triton.local_attention`, for checked arguments; `kernel` as in `attention_with_lse`."""
    rows = a.q if a.rows is None else take_rows(a.q, a.rows)
    if kernel is not None:
        return attention_with_lse(rows, a.k, a.v, a.factor, kernel=kernel)[0]
    q, k, v = (x.transpose(1, 2) for x in (in_rows(rows), adjacent(a.k), adjacent(a.v)))
    return F.scaled_dot_product_attention(q, k, v, scale=a.factor).transpose(1, 2).contiguous()


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, R) of x (B, N, ...) -> (B, R, ...).

    `torch.take_along_dim` does the same, but pins the batch size in an exported graph.
    """
    wide = index.long().view(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, wide.expand(-1, -1, *x.shape[2:]))


def rollout_row(
    qs: list[Tensor],
    ks: list[Tensor],
    lses: list[Tensor],
    scale: float,
    row: Tensor | None,
    biases: list[Tensor] | None = None,
) -> Tensor:
    row = None if row is None else row.float()
    lses = [lse.float() for lse in lses]
    device = qs[0].device.type
    autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else None
    with autocast or nullcontext():  # sums over N tokens and L layers stay in float32
        no_biases: list[None] = [None] * len(qs)
        layers = zip(qs, ks, lses, biases or no_biases, strict=True)
        for q, k, lse, bias in reversed([*layers]):
            bias = None if bias is None else bias.float()
            row = _first_step(q, k, lse, scale, bias) if row is None else _step(row, q, k, lse, scale, bias)
    assert row is not None
    return row.contiguous()


def _pairs(own: Sequence[Tensor], others: Tensor | None, partners: list[int]) -> Tensor:
    """Tokens of the images in the last part of own, each followed by its partner's -> (B, N + N', H, D).

    Partners are images of `others`, or of all parts of own; that of -1 is any. Each token is copied once, and
    so is its gradient.
    """
    images = own[-1].unbind()
    pool = [x for part in own for x in part.unbind()] if others is None else others.unbind()
    pairs = [x for image, partner in zip(images, partners, strict=True) for x in (image, pool[partner])]
    return torch.cat(pairs).view(len(images), -1, *images[0].shape[1:])


def _unread_pairs(
    a: Attention,
    first: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    dropout: float,
    kernel: str | None,
) -> tuple[Tensor, Tensor]:
    """Attention of the rows from `first` on, whose q, k, v and bias are given, by an index that is not read.

    A mask would rule out PyTorch's fastest kernels. Instead an image without a partner is its own partner:
    each key counts twice, which changes nothing but the log-sum-exp, by log 2.
    """
    assert a.partner_index is not None
    index = a.partner_index[first:]
    absent, chosen = index < 0, index.clamp(min=0)
    doubled = not dropout  # which would drop the two copies of a key apart
    if a.partner_k is None or a.partner_v is None:
        own_rows = torch.arange(first, a.k.shape[0], device=index.device, dtype=index.dtype)
        chosen = torch.where(absent, own_rows, index)
        partner_k, partner_v = a.k.index_select(0, chosen), a.v.index_select(0, chosen)
    else:
        partner_k, partner_v = a.partner_k.index_select(0, chosen), a.partner_v.index_select(0, chosen)
        doubled = doubled and partner_k.shape[1] == k.shape[1]
        if doubled:
            itself = absent[:, None, None, None]
            partner_k, partner_v = torch.where(itself, k, partner_k), torch.where(itself, v, partner_v)
    keys, values = torch.cat([k, partner_k], 1), torch.cat([v, partner_v], 1)
    both = None if bias is None or not doubled else _twice(bias, k)
    mask = both if doubled else _partner_mask(index, k, keys, bias)
    out, lse = attention_with_lse(q, keys, values, a.factor, mask, dropout, kernel)
    return out, torch.where(absent[:, None, None], lse - math.log(2), lse) if doubled else lse


def _twice(bias: Tensor, k: Tensor) -> Tensor:
    """A bias for the own keys and the partner's (..., 2N)."""
    return torch.cat([bias.expand(*bias.shape[:3], k.shape[1])] * 2, -1)


def _partner_mask(index: Tensor, own: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """What hides the partner's keys from images that have none, to be added to the scores, and a bias."""
    absent = torch.zeros(len(index), keys.shape[1], dtype=own.dtype, device=index.device)
    absent[:, own.shape[1] :].masked_fill_((index < 0)[:, None], float("-inf"))
    absent = absent[:, None, None, :]
    return absent if bias is None else _twice(bias, own) + absent


def _first_step(q: Tensor, k: Tensor, lse: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """0.5 e_cls + 0.5 mean_h P_h[cls]: the class token's row only."""
    scores = torch.einsum("bhd,bnhd->bhn", q[:, 0].float(), k.float()) * scale
    scores = scores if bias is None else scores + bias[:, :, 0]
    row = 0.5 * (scores - lse[:, :, :1]).exp_().mean(1)
    row[:, 0] += 0.5
    return row


def _step(row: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """0.5 r + 0.5 mean_h(r P_h), computed for as many heads and rows at a time as a cache holds."""
    if torch.compiler.is_compiling() or q.device.type != "cpu":
        return _fused_step(row, q, k, lse, scale, bias)
    B, M, H, _ = q.shape
    N = k.shape[1]
    biases = None if bias is None else (bias * LOG2E).expand(B, H, M, N)
    queries, keys = (t.float().transpose(1, 2).flatten(0, 1) for t in (q, k))  # [B * H, N, D]
    # exp2 takes half the time of exp.
    shift = LOG2E * (row.log()[:, None] - lse).reshape(B * H, M, 1)
    mixed = row.new_zeros(B * H, N)
    for heads in row_chunks(B * H, M * N, CHUNK):
        for rows in row_chunks(M, len(mixed[heads]) * N, CHUNK):
            scores = torch.baddbmm(
                shift[heads, rows], queries[heads, rows], keys[heads].mT, alpha=scale * LOG2E
            )
            if biases is not None:
                number = torch.arange(B * H)[heads]
                scores += biases[number // H, number % H, rows]
            mixed[heads] += scores.exp2_().sum(1)
    return 0.5 * row + 0.5 * mixed.view(B, H, N).mean(1)


def _fused_step(row: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """The same step as attention of the keys to the queries, whose graph serves all batch sizes.

    Σ_m r_m exp(s_mn - lse_m) is the mean of r under the softmax over m, times that softmax's denominator.
    """
    values = row[:, :, None, None].expand_as(q).contiguous()
    mask = -lse.contiguous()[:, :, None]  # PyTorch's kernel would expand a strided mask to N x N
    mask = mask if bias is None else bias.mT + mask
    mean, denominator = attention_with_lse(k.float(), q.float(), values, scale, mask)
    mixed = mean[..., 0].transpose(1, 2) * denominator.exp()  # [B, H, N]
    return 0.5 * row + 0.5 * mixed.mean(1)
