"""The three operations in plain PyTorch: any device, linear memory, differentiable by autograd."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Attention

# Most scores that one chunk of a row-wise product holds: 1 MiB of fp32 stays in a core's cache; 256 MiB need
# few launches on a GPU.
CHUNK, GPU_CHUNK = 1 << 18, 1 << 26
LOG2E = math.log2(math.e)


def pair_attention(a: Attention, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """As `dca_triton.pair_attention`, for checked arguments; `dropout` drops attention probabilities."""
    q, k, v, index, scale, bias = a.q, a.k, a.v, a.partner_index, a.factor, a.bias
    if index is None:
        return attention_with_lse(q, k, v, scale, bias, dropout)
    if torch.compiler.is_compiling() or index.device.type != "cpu":  # where reading it costs a host sync
        if bias is not None and not dropout:
            return _biased_pairs(a, bias, index)
        keys, values = _gathered_pairs(k, a.partner_k, index), _gathered_pairs(v, a.partner_v, index)
        return attention_with_lse(q, keys, values, scale, _partner_mask(index, k, keys, bias), dropout)
    partners = index.tolist()
    # Leading rows without a partner, as SA's rows in a model's step, need neither a mask nor other keys.
    alone = next((row for row, partner in enumerate(partners) if partner >= 0), len(partners))
    if alone == len(partners):
        return attention_with_lse(q, k, v, scale, bias, dropout)
    # The gradient of a split is one copy; that of slices would be a sum of padded ones.
    sizes = [alone, len(partners) - alone] if alone else [len(partners)]
    qs, ks, vs = (x.split(sizes) for x in (q, k, v))
    keys, values = _pairs(ks, a.partner_k, partners[alone:]), _pairs(vs, a.partner_v, partners[alone:])
    # A bias of batch size 1 is that of every image.
    own, theirs = (bias, bias) if bias is None or len(bias) == 1 else (bias[:alone], bias[alone:])
    mask = None if theirs is None else _twice(theirs, k)
    if -1 in partners[alone:]:
        mask = _partner_mask(index[alone:], k, keys, theirs)
    paired = attention_with_lse(qs[-1], keys, values, scale, mask, dropout)
    if not alone:
        return paired
    unpaired = attention_with_lse(qs[0], ks[0], vs[0], scale, own, dropout)
    out, lse = (torch.cat(both) for both in zip(unpaired, paired, strict=True))
    return out, lse


def local_attention(a: Attention) -> Tensor:
    """As `dca_triton.local_attention`, for checked arguments."""
    rows = a.q if a.rows is None else take_rows(a.q, a.rows)
    q, k, v = (x.transpose(1, 2) for x in (_in_rows(rows), _adjacent(a.k), _adjacent(a.v)))
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


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ scale + mask) V (B, M, H, D) and its log-sum-exp (B, H, M), which carries no gradient."""
    q, k, v = _in_rows(q), _adjacent(k), _adjacent(v)
    q_, k_, v_ = (t.transpose(1, 2) for t in (q, k, v))
    learned = mask is not None and mask.requires_grad  # the kernel gives a mask no gradient
    on_cpu = q.device.type == "cpu" and not learned
    if on_cpu and dropout == 0 and not torch.compiler.is_exporting() and _flash_is_enabled():
        # This is the kernel that F.scaled_dot_product_attention uses on a CPU. It also returns the
        # log-sum-exp. F.scaled_dot_product_attention checks shapes, dtypes and strides before it calls the
        # kernel, which checks nothing. Here the public operations have checked shapes and dtypes, and the two
        # functions above arrange the strides. Exported graphs run where there is no such kernel.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_, k_, v_, attn_mask=mask, scale=scale
        )
        return out.transpose(1, 2).contiguous(), lse.contiguous()
    out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, dropout_p=dropout, scale=scale)
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():  # an exporter may exchange the function for one with other strides
        out = out.clone(memory_format=torch.contiguous_format)
    return out.contiguous(), _log_sum_exp(q, k, scale, mask)


def _in_rows(q: Tensor) -> Tensor:
    """q itself if the kernel's output will be contiguous, else a contiguous copy.

    The kernel allocates its output (B, H, M, D) like q, and then writes it as if its features were adjacent.
    For some layouts of q (overlapping windows, for example) they are not.
    """
    of_image, of_token, of_head, of_feature = q.stride()
    if of_image > of_token > of_head > of_feature == 1:  # a packed projection: nothing to find out
        return q
    out = torch.empty_like(q.transpose(1, 2), device="meta")
    return q if q.stride(-1) == 1 and out.transpose(1, 2).is_contiguous() else q.contiguous()


def _adjacent(x: Tensor) -> Tensor:
    """Return x with a last stride of 1, which the kernel requires; a copy only if its stride differs."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _flash_is_enabled() -> bool:
    """The switch for every device, despite its name. A compiler cannot trace it and assumes that it is on."""
    return torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()


def _pairs(own: Sequence[Tensor], others: Tensor | None, partners: list[int]) -> Tensor:
    """Tokens of the images in the last part of own, each followed by its partner's -> (B, N + N', H, D).

    Partners are images of `others`, or of all parts of own; that of -1 is any. Each token is copied once, and
    so is its gradient.
    """
    images = own[-1].unbind()
    pool = [x for part in own for x in part.unbind()] if others is None else others.unbind()
    pairs = [x for image, partner in zip(images, partners, strict=True) for x in (image, pool[partner])]
    return torch.cat(pairs).view(len(images), -1, *images[0].shape[1:])


def _gathered_pairs(own: Tensor, others: Tensor | None, index: Tensor) -> Tensor:
    """The same for own (B, N, H, D) and an index (B,) that cannot be read."""
    index = index.clamp(min=0)
    if others is not None:
        return torch.cat([own, others.index_select(0, index)], 1)
    rows = torch.arange(len(own), device=index.device, dtype=index.dtype)
    pairs = torch.stack([rows, index], 1).flatten()
    return own.index_select(0, pairs).unflatten(0, (len(own), 2)).flatten(1, 2)


def _biased_pairs(a: Attention, bias: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """`pair_attention` with a bias and an index that cannot be read.

    To hide keys from images without a partner, the bias of every image would be formed. Instead such an image
    is its own partner: each key counts twice, which changes nothing but the log-sum-exp, by log 2.
    """
    alone = index < 0
    if a.partner_k is None or a.partner_v is None:
        rows = torch.arange(index.shape[0], device=index.device, dtype=index.dtype)
        index = torch.where(alone, rows, index)
        keys, values = _gathered_pairs(a.k, None, index), _gathered_pairs(a.v, None, index)
    else:
        chosen = index.clamp(min=0)
        keys, values = (
            torch.cat([own, torch.where(alone[:, None, None, None], own, others.index_select(0, chosen))], 1)
            for own, others in ((a.k, a.partner_k), (a.v, a.partner_v))
        )
    out, lse = attention_with_lse(a.q, keys, values, a.factor, _twice(bias, a.k))
    return out, torch.where(alone[:, None, None], lse - math.log(2), lse)


def _twice(bias: Tensor, k: Tensor) -> Tensor:
    """A bias for the own keys and the partner's (..., 2N)."""
    return torch.cat([bias.expand(*bias.shape[:3], k.shape[1])] * 2, -1)


def _partner_mask(index: Tensor, own: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """What hides the partner's keys from images that have none, to be added to the scores, and a bias."""
    absent = torch.zeros(len(index), keys.shape[1], dtype=own.dtype, device=index.device)
    absent[:, own.shape[1] :].masked_fill_((index < 0)[:, None], float("-inf"))
    absent = absent[:, None, None, :]
    return absent if bias is None else _twice(bias, own) + absent


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    B, M, H, _ = q.shape
    lse = torch.empty(B, H, M, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    keys = k.permute(0, 2, 3, 1)
    for rows in _row_chunks(M, B * H * k.shape[1], CHUNK if q.device.type == "cpu" else GPU_CHUNK):
        scores = (q[:, rows].transpose(1, 2) @ keys).to(lse.dtype) * scale
        lse[:, :, rows] = (scores if mask is None else scores + mask).logsumexp(-1)
    return lse


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
    image, head = torch.arange(B * H).div(H, rounding_mode="floor"), torch.arange(B * H) % H
    biases = None if bias is None else (bias * LOG2E).expand(B, H, M, N)
    queries, keys = (t.float().transpose(1, 2).flatten(0, 1) for t in (q, k))  # [B * H, N, D]
    # exp2 takes half the time of exp.
    shift = LOG2E * (row.log()[:, None] - lse).reshape(B * H, M, 1)
    mixed = row.new_zeros(B * H, N)
    for heads in _row_chunks(B * H, M * N, CHUNK):
        for rows in _row_chunks(M, len(mixed[heads]) * N, CHUNK):
            scores = torch.baddbmm(
                shift[heads, rows], queries[heads, rows], keys[heads].mT, alpha=scale * LOG2E
            )
            if biases is not None:
                scores += biases[image[heads], head[heads], rows]
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


def _row_chunks(rows: int, scores_per_row: int, most: int) -> list[slice]:
    if torch.compiler.is_exporting():  # one graph serves all batch sizes
        return [slice(None)]
    step = max(1, most // scores_per_row)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
