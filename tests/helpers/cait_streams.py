"""The streams of DCAL on timm's CaiT: its modules with attentions that are written out, image by image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from timm.models import cait
from timm_streams import Slow
from torch import Tensor

from dca_triton import DualAttentionModel, reference


@contextmanager
def attending_to_partners(partners: Tensor) -> Iterator[list[Tensor]]:
    """timm's attentions for one image at a time, whose keys are those of its partner too, -1 = none.

    Yields the probabilities of each block among all tokens (B, H, 1 + N, keys), which a token that the block
    leaves as it is gives to itself; for images without partners only.
    """
    probabilities: list[Tensor] = []

    def keys_of(x: Tensor, image: int) -> Tensor:
        partner = int(partners[image])
        return x[image] if partner < 0 else torch.cat([x[image], x[partner]])

    def talking_heads(self: Any, x: Tensor) -> Tensor:
        H, outputs = self.num_heads, []
        whole = torch.eye(1 + x.shape[1], dtype=x.dtype).repeat(len(x), H, 1, 1)
        for image in range(len(x)):
            keys = keys_of(x, image)
            q = self.qkv(x[image]).chunk(3, -1)[0].unflatten(1, (H, -1))
            k, v = (part.unflatten(1, (H, -1)) for part in self.qkv(keys).chunk(3, -1)[1:])
            scores = [q[:, h] @ k[:, h].T * self.scale for h in range(H)]
            weight, bias = self.proj_l.weight, self.proj_l.bias
            mixed = [sum(weight[h, i] * scores[i] for i in range(H)) + bias[h] for h in range(H)]
            maps = [each.softmax(-1) for each in mixed]
            whole[image, :, 1:, 1:] = torch.stack(maps).detach()[:, :, : x.shape[1]]
            weight, bias = self.proj_w.weight, self.proj_w.bias
            mixed = [sum(weight[h, i] * maps[i] for i in range(H)) + bias[h] for h in range(H)]
            outputs.append(torch.cat([mixed[h] @ v[:, h] for h in range(H)], 1))
        probabilities.append(whole)
        return self.proj(torch.stack(outputs))

    def class_attention(self: Any, x: Tensor) -> Tensor:
        H, outputs = self.num_heads, []
        whole = torch.eye(x.shape[1], dtype=x.dtype).repeat(len(x), H, 1, 1)
        for image in range(len(x)):
            out, maps = attended(self, x[image, :1], keys_of(x, image))
            whole[image, :, :1] = maps.detach()[..., : x.shape[1]]
            outputs.append(out)
        probabilities.append(whole)
        return self.proj(torch.stack(outputs))

    with (
        mock.patch.object(cait.TalkingHeadAttn, "forward", talking_heads),
        mock.patch.object(cait.ClassAttn, "forward", class_attention),
    ):
        yield probabilities


def attended(attention: Any, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """What rows (M, C) take from keys (N, C) by the weights of a class attention, and the maps (H, M, N)."""
    H = attention.num_heads
    q, k, v = (
        layer(x).unflatten(1, (H, -1))
        for layer, x in ((attention.q, queries), (attention.k, keys), (attention.v, keys))
    )
    maps = [(q[:, h] @ k[:, h].T * attention.scale).softmax(-1) for h in range(H)]
    return torch.cat([maps[h] @ v[:, h] for h in range(H)], 1), torch.stack(maps)


def slow_local(block: Any, tokens: Tensor, selected: Tensor) -> Tensor:
    """A class-attention block whose queries are the selected rows (B, R) of tokens (B, 1 + N, C)."""
    normed, outputs = block.norm1(tokens), []
    for image, rows in enumerate(selected):
        out, _ = attended(block.attn, normed[image, rows], normed[image])
        y = tokens[image, rows] + block.gamma_1 * block.attn.proj(out)
        outputs.append(y + block.gamma_2 * block.mlp(block.norm2(y)))
    return torch.stack(outputs)


def slow_streams(model: DualAttentionModel, plain: Any, images: Tensor, partner: Tensor) -> Slow:
    """The paper's layout with one GLCA block; `plain` is the `twin` of its backbone."""
    seen: list[Tensor] = []
    hook = plain.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sa = plain.forward_features(images)
    hook.remove()
    with attending_to_partners(torch.full_like(partner, -1)) as maps:
        torch.testing.assert_close(plain.forward_features(images), sa)
    with attending_to_partners(partner):
        pwca = plain.forward_features(images)
    row = reference.rollout(maps)[:, 0]
    selected = reference.select_local(row, 1, model.top_k_ratio)
    glca = plain.norm(slow_local(model.glca_blocks[0], seen[0], selected))
    return Slow(sa, pwca, glca, row, selected)
