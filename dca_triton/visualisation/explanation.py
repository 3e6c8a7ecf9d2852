"""What a model saw in its images: from rollout and log-sum-exps, without any attention map."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layouts import Call
from ..model import DualAttentionModel
from ..model_checks import check_inputs
from ..modules import Attended, project_keys, run_block
from ..ops import pair_attention
from ..rollout import rollout_of


class Explanation(NamedTuple):
    """Rollout of the class token (B, N) float32, selected rows (B, 1 + R) int64, probabilities of SA and GLCA
    (B, K) float32.
    """

    rollout: Tensor
    selected: Tensor
    sa: Tensor
    glca: Tensor


@torch.no_grad()
def explain(model: DualAttentionModel, images: Tensor) -> Explanation:
    """Exact rollout (DCAL, eq. 2), local selection and predictions of images (B, 3, h, w), floating point.

    The model is left in evaluation mode. Raises ValueError for what are no such images.
    """
    check_inputs(model.backbone, images)
    model.eval()
    branches = model.branches(
        Call(images, None, None, False, model.backend),
        lambda attended: rollout_of(attended, model.attention_scale, model.backend),
    )
    assert branches.rollout is not None and branches.selected is not None
    sa, glca = model.sa_head(branches.sa[:, 0]), model.glca_head(branches.glca[:, 0])
    return Explanation(branches.rollout, branches.selected, sa.float().softmax(1), glca.float().softmax(1))


@torch.no_grad()
def distractor_share(model: DualAttentionModel, images: Tensor, distractors: Tensor) -> Tensor:
    """How much of each token's attention falls on the distractor, in every PWCA block: (B, L, N) in 0..1.

    The share of the softmax's mass on the partner's keys, 1 - exp(lse_own - lse_pair), exact from the
    log-sum-exp over the own keys and that over both; mean over the heads. 0.5 is a token that does not tell
    the two images apart. The model is left in evaluation mode.

    Args:
        model: On the device of the images.
        images: (B, 3, h, w).
        distractors: The partner of each image, shaped as `images`.

    Raises:
        ValueError: Images of different shapes.
    """
    if images.shape != distractors.shape:
        raise ValueError(
            f"distractors has shape {tuple(distractors.shape)}; allowed is images', {tuple(images.shape)}"
        )
    model.eval()
    stream = _paper_stream if model.layout == "paper" else _reference_stream
    shares = []
    for q, k, lse in stream(model, images, distractors):
        _, own = pair_attention(q, k, k, scale=model.attention_scale, backend=model.backend)
        shares.append(-torch.expm1(own - lse).clamp(max=0).mean(1))
    return torch.stack(shares, 1)


def _paper_stream(model: DualAttentionModel, images: Tensor, distractors: Tensor) -> Iterator[Attended]:
    """The blocks of the images' PWCA stream; images and distractors are partners of each other."""
    B = len(images)
    x = model.backbone.embed(torch.cat([images, distractors]))
    partner = torch.arange(2 * B, device=x.device).roll(B)
    for block in model.backbone.model.blocks:
        x, left = run_block(block, x, None, partner, backend=model.backend)
        yield Attended(*(t[:B] for t in left))


def _reference_stream(model: DualAttentionModel, images: Tensor, distractors: Tensor) -> Iterator[Attended]:
    """The SA blocks over the images' features; every block sees the same features of the distractors."""
    x, other = model.backbone(torch.cat([images, distractors])).chunk(2)
    partner = torch.arange(len(x), device=x.device)
    block: Any
    for block in model.sa_blocks:
        keys = project_keys(block.attn, block.norm1(other))
        x, left = run_block(block, x, keys, partner, backend=model.backend)
        yield left
