"""The streams of a Swin by timm's own modules, whose attention loops over windows and their partners."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize


def slow_attention(attn: Any, partner: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """timm's attention of each window of each image, with the keys of the partner's window behind its own."""
    B, windows, N = len(partner), len(x) // len(partner), x.shape[1]
    cosine = hasattr(attn, "logit_scale")
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if cosine else attn.qkv.bias
    q, k, v = linear(x, attn.qkv.weight, bias).view(len(x), N, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    if cosine:
        factor = attn.logit_scale.clamp(max=torch.tensor(100.0).log().item()).exp()
        q, k = normalize(q, dim=-1) * factor, normalize(k, dim=-1)
        table = 16 * attn.cpb_mlp(attn.relative_coords_table).flatten(0, 2).sigmoid()
    else:
        q, table = q / q.shape[-1] ** 0.5, attn.relative_position_bias_table
    places = table[attn.relative_position_index].permute(2, 0, 1)
    out = []
    for image in range(B):
        for window in range(windows):
            rows = [image * windows + window]
            if partner[image] >= 0:
                rows.append(int(partner[image]) * windows + window)
            added = places if mask is None else places + mask[window]
            scores = torch.cat([q[rows[0]] @ k[row].mT + added for row in rows], -1)
            out.append(scores.softmax(-1) @ torch.cat([v[row] for row in rows], 1))
    return attn.proj(torch.stack(out).transpose(1, 2).flatten(2))


def slow_windows(plain: Any, pwca_blocks: tuple[int, int], x: Tensor, partner: Tensor) -> list[Tensor]:
    """Tokens of SA and PWCA (B, N, C) after timm's final norm; timm's model `plain` is left with partners."""
    sa = plain.forward_features(x)
    first, last = pwca_blocks
    for block in [block for stage in plain.layers for block in stage.blocks][first - 1 : last]:
        block.attn.forward = partial(slow_attention, block.attn, partner)
    return [sa.flatten(1, 2), plain.forward_features(x).flatten(1, 2)]
