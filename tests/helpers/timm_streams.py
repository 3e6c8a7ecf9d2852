"""The streams of DCAL by timm's own modules: its model is run with another scaled_dot_product_attention.

Nothing of this library takes part but the selection, so projections, rotations, scales and norms are timm's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.model import dual_attention
from dca_triton.model.backbone import Backbone


class Slow(NamedTuple):
    """Tokens of SA and PWCA (B, N, C) and GLCA (B, R, C) after timm's final norm; the rollout (B, N)."""

    sa: Tensor
    pwca: Tensor
    glca: Tensor
    rollout: Tensor
    selected: Tensor


@contextmanager
def attention_over_partners(partner: Tensor | None) -> Iterator[list[Tensor]]:
    """One softmax over an image's keys and those of its partner (B,), -1 = none; yields the maps."""
    maps: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        assert not kwargs.get("dropout_p")
        bias = 0 if kwargs.get("attn_mask") is None else kwargs["attn_mask"]
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias
        if partner is not None:
            others = q @ k[partner.clamp(min=0)].mT / q.shape[-1] ** 0.5 + bias
            others = others.masked_fill((partner < 0)[:, None, None, None], float("-inf"))
            scores, v = torch.cat([scores, others], -1), torch.cat([v, v[partner.clamp(min=0)]], 2)
        maps.append(scores.softmax(-1))
        return maps[-1] @ v

    original, nn.functional.scaled_dot_product_attention = nn.functional.scaled_dot_product_attention, attend
    try:
        yield maps
    finally:
        nn.functional.scaled_dot_product_attention = original


def narrow_model(name: str, sizes: dict, **options: Any) -> DualAttentionModel:
    """A model in the paper's layout whose backbone timm builds with other `sizes`, as width and heads."""
    with mock.patch.object(dual_attention, "Backbone", partial(Backbone, **sizes)):
        arguments = {"layout": "paper", "pretrained": False, "drop_path_rate": 0.0, "top_k_ratio": 0.3}
        return DualAttentionModel(name, 3, **(arguments | options))


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Weights with LayerScale, norms and biases that do not pass for the identity or for each other."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05))
    return model


def twin(model: DualAttentionModel, name: str, **options: Any) -> nn.Module:
    """timm's own model with the weights of the backbone."""
    plain = timm.create_model(name, num_classes=0, **options).to(next(model.parameters()).dtype)
    if getattr(model.backbone.model, "attn_pool", None) is None:
        plain.attn_pool = None
    plain.load_state_dict(model.backbone.model.state_dict())
    return plain.train(model.training)


def slow_streams(model: DualAttentionModel, plain: Any, images: Tensor, partner: Tensor) -> Slow:
    """The paper's layout with one GLCA block; `plain` is the `twin` of its backbone."""
    seen: list[tuple[Tensor, dict]] = []

    def see(_: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        seen.append((output, kwargs))

    last = plain.blocks[-1]
    hook = last.register_forward_hook(see, with_kwargs=True)
    with attention_over_partners(None) as maps:
        sa = plain.forward_features(images)
        hook.remove()
        tokens, kwargs = seen[0]
        weights = dict(model.glca_blocks[0].named_parameters())
        glca = torch.func.functional_call(last, weights, (tokens,), kwargs)
        maps.pop()
    with attention_over_partners(partner):
        pwca = plain.forward_features(images)
    if plain.cls_token is None:
        with attention_over_partners(None) as weights:
            plain.pool(sa)
        pooled = weights[0].mean(1)[:, 0] if weights else torch.ones_like(sa[:, plain.num_prefix_tokens :, 0])
        start = nn.functional.pad(pooled / pooled.sum(1, keepdim=True), (sa.shape[1] - pooled.shape[1], 0))
    else:
        start = torch.eye(sa.shape[1], dtype=sa.dtype)[:1].expand(len(sa), -1)
    row = (start[:, None] @ reference.rollout([each.detach() for each in maps]))[:, 0].detach()
    selected = reference.select_local(row, plain.num_prefix_tokens, model.top_k_ratio)
    if plain.cls_token is None:
        selected = selected[:, 1:]
    rows = torch.take_along_dim(glca, selected[:, :, None], 1)
    class_norm = isinstance(plain.norm, nn.Identity) and plain.cls_token is not None
    after = plain.fc_norm if class_norm else nn.Identity()
    return Slow(after(sa), after(pwca), after(plain.norm(rows)), row, selected)
