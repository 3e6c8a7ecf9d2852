"""Inspect a model: rollout, selected patches, predictions, attention on distractors."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import raise_faults
from ..ops import pair_attention
from .checks import check_inputs, check_rollout
from .dual_attention import DualAttentionModel
from .side_information import Sides


class Explanation(NamedTuple):
    """Rollout of the class token (B, N) float32, selected rows (B, 1 + R) int64, probabilities of SA and GLCA
    (B, K) float32; None for GLCA if the model has no such branch. Without a class token rollout starts from
    the pooling's weights, and the selected rows are (B, R).
    """

    rollout: Tensor
    selected: Tensor
    sa: Tensor
    glca: Tensor | None


@torch.no_grad()
def explain(
    model: DualAttentionModel,
    images: Tensor,
    cameras: Tensor | None = None,
    views: Tensor | None = None,
) -> Explanation:
    """Return exact rollout (DCAL, eq. 2), local selection and predictions of images (B, 3, h, w).

    The images are floating point; cameras and views (B,) are as in `DualAttentionModel.forward`. The
    model is left in evaluation mode. Raises ValueError for images that do not fit, and for a backbone without
    a rollout.
    """
    check_rollout(model.backbone)
    sides = Sides(cameras, views)
    check_inputs(model.backbone, images, sie=model.sie, sides=sides)
    model.eval()
    streams = model.sa_and_pwca(images, sides=sides)
    row = model.rollout(streams)
    selected = model.select(row)
    sa = model.sa_head(model.read_out_sa(streams.sa)).float().softmax(1)
    if "glca" not in model.branches:
        return Explanation(row, selected, sa, None)
    tokens = model.local_branch(streams, selected, only_selected=True)
    glca = model.glca_head(model.read_out_glca(tokens)).float().softmax(1)
    return Explanation(row, selected, sa, glca)


@torch.no_grad()
def distractor_share(model: DualAttentionModel, images: Tensor, distractors: Tensor) -> Tensor:
    """Return each token's share of attention on the distractor, in every PWCA block: (B, blocks, N) in 0..1.

    The share is the softmax's mass on the partner's keys, 1 - exp(lse_own - lse_pair), averaged over the
    heads. It is exact. A token that attends equally to both images has 0.5. The model is left in evaluation
    mode. Images count as photos without a camera.

    Args:
        model: On the device of the images.
        images: (B, 3, h, w).
        distractors: The partner of each image, shaped as `images`.

    Raises:
        ValueError: Images that do not fit, or of different shapes, or a model without PWCA, or with blocks
            of different N.
    """
    check_rollout(model.backbone)
    if "pwca" not in model.branches:
        raise_faults([f"model must have a PWCA branch, got the branches {', '.join(model.branches)}"])
    if images.shape != distractors.shape:
        raise_faults(
            [
                f"distractors must have the shape of images, {tuple(images.shape)}, "
                f"got {tuple(distractors.shape)}"
            ]
        )
    check_inputs(model.backbone, images)
    model.eval()
    shares = []
    for q, k, lse, bias in model.sa_and_pwca(images, distractors).pwca_traces:
        _, own = pair_attention(q, k, k, bias=bias, backend=model.backend)
        shares.append(-torch.expm1(own - lse).clamp(max=0).mean(1))
    return torch.stack(shares, 1)
