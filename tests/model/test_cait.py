"""timm's CaiT in the paper's layout, against timm's own modules and attention of single images, in float64."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import cait as timm_cait
from timm_streams import narrow_model, randomized, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.checkpoint import load_weights, save_checkpoint
from dca_triton.model import cait, distractor_share, explain, export_onnx
from dca_triton.training.parameter_groups import layer_matcher

NAME = "cait_xxs24_224"
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4}
SIZE = (48, 64)  # 3 x 4 patches
PARTNERS = torch.tensor([2, 2, -1, 0])
NONE = torch.full((4,), -1)
BRANCHES = ("sa", "glca", "pwca")


def build(**options: Any) -> DualAttentionModel:
    torch.manual_seed(0)
    model = narrow_model(NAME, SIZES, **({"img_size": SIZE} | options))
    return randomized(model).double().eval()


def plain_of(model: DualAttentionModel) -> Any:
    return twin(model, NAME, img_size=SIZE, **SIZES)


def images_of(size: tuple[int, int] = SIZE) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, *size, dtype=torch.float64)


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
        mock.patch.object(timm_cait.TalkingHeadAttn, "forward", talking_heads),
        mock.patch.object(timm_cait.ClassAttn, "forward", class_attention),
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


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_streams_gradients_and_rollout_are_those_of_timms_modules() -> None:
    model, images = build(), images_of()
    plain = plain_of(model)
    seen: list[Tensor] = []
    hook = plain.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sa = plain.forward_features(images)
    hook.remove()
    with attending_to_partners(PARTNERS):
        pwca = plain.forward_features(images)
    with attending_to_partners(NONE) as maps:
        close(plain.forward_features(images), sa)
    row = reference.rollout(maps)[:, 0]
    selected = reference.select_local(row, 1, model.top_k_ratio)
    glca = plain.norm(slow_local(model.glca_blocks[0], seen[0], selected))

    streams = model.sa_and_pwca(images, partner_index=PARTNERS)
    assert torch.equal(model.select(model.rollout(streams)), selected)
    close(model.rollout(streams).double(), row)
    found = (streams.sa, streams.pwca, model.local_branch(streams, selected))
    close(found, (sa, pwca, glca))
    assert (found[1] - found[0])[[0, 1, 3]].abs().max() > 1e-3, "a partner changes something"
    close(found[1][2], sa[2])
    close(model.read_out_sa(streams.sa), plain.forward_head(sa, pre_logits=True))
    weights = dict(model.backbone.model.named_parameters())
    ours = torch.autograd.grad(sum(x.sin().sum() for x in found), [*weights.values()])
    truth = dict(plain.named_parameters())
    expected = torch.autograd.grad(sum(x.sin().sum() for x in (sa, pwca, glca)), [truth[name] for name in weights])
    for weight, gradient, right in zip(weights, ours, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-7, msg=lambda m, n=weight: f"{n}: {m}")
    with torch.no_grad():
        short = model(images, class_tokens_only=True)
        close((short["sa_features"][:, 0], short["glca_features"][:, 0]), (sa[:, 0], glca[:, 0]))
