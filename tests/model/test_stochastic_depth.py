"""Dropped images are not computed, and each is dropped as often as it should be."""

import pytest
import torch
from small_training import small_model
from timm.layers import DropPath
from torch import nn

from dca_triton.model import blocks
from dca_triton.model.stochastic_depth import add_residual, kept_rows
from dca_triton.model.vit import Attention, Block
from dca_triton.ops import pair_attention, pair_up

B, N, C = 8, 5, 32
X = torch.randn(B, N, C, generator=torch.Generator().manual_seed(0))
PARTNERS = torch.tensor([3, -1, 0, 1, 5, 4, 2, 6])


def drawn(p: float, times: int) -> torch.Tensor:
    """What a branch of ones adds to each image (times, B)."""
    torch.manual_seed(1)
    path, x = DropPath(p).train(), torch.zeros(B, 2)
    added = []
    for _ in range(times):
        rows = kept_rows(path, x)
        branch = torch.ones(B if rows is None else len(rows), 2)
        added.append(add_residual(x, path, rows, branch)[:, 0])
    return torch.stack(added)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.125, 0.3, 0.5, 0.9])
def test_each_image_is_dropped_with_probability_p(p):
    times = 4000
    added = drawn(p, times)
    kept = added != 0
    torch.testing.assert_close(added[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), rtol=1e-5, atol=0)
    deviation = (p * (1 - p) / times) ** 0.5
    assert ((kept.float().mean(0) - (1 - p)).abs() < 4.5 * deviation).all()
    assert (kept.sum(1) <= B - int(p * B)).all(), "the images skipped for certain"


def test_nothing_is_dropped_in_evaluation_or_without_stochastic_depth():
    assert kept_rows(nn.Identity().train(), X) is None
    assert kept_rows(DropPath(0.5).eval(), X) is None
    assert kept_rows(DropPath(0.5, scale_by_keep=False).train(), X) is None
    hooked = DropPath(0.5).train()
    hooked.register_forward_hook(lambda *call: None)
    assert kept_rows(hooked, X) is None


@pytest.mark.parametrize("index", [None, PARTNERS, pair_up(PARTNERS, B)], ids=["none", "plain", "inverted"])
def test_the_images_kept_by_a_block_are_computed_as_all_are(index, monkeypatch):
    """An image that is kept attends to a partner that is not."""
    torch.manual_seed(0)
    block = Block(C, 2, drop_path=0.25, attn_layer=Attention)
    rows = torch.tensor([0, 2, 3, 4, 6, 7])
    monkeypatch.setattr(blocks, "kept_rows", lambda path, x: rows)
    x = X.clone().requires_grad_()
    out = block.train()(x, pairs=index)

    y = X.clone().requires_grad_()
    kept = torch.zeros(B, 1, 1).index_fill(0, rows, 1 / 0.75)
    q, k, v = block.attn.project(block.norm1(y))
    attended, _ = pair_attention(q, k, v, partner_index=index, scale=4.0**-1)
    expected = y + kept * block.attn.proj(attended.flatten(2))
    expected = expected + kept * block.mlp(block.norm2(expected))
    torch.testing.assert_close(out, expected)
    weights = torch.randn(B, N, C)
    grads = [
        torch.autograd.grad((o * weights).sum(), (z, *block.parameters()))
        for o, z in ((out, x), (expected, y))
    ]
    for ours, truth in zip(*grads, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["reference", "paper"])
def test_a_training_step_computes_less(layout):
    computed = {}
    for rate in (0.0, 0.5):
        model = small_model(layout=layout, drop_path_rate=rate, depth=3, num_sa_blocks=3).train()
        seen = []
        for block in model._sa_blocks:
            block.mlp.register_forward_hook(
                lambda module, inputs, output, s=seen: s.append(inputs[0].shape[:2].numel())
            )
        model(torch.randn(8, 3, 16, 16), partner_index=torch.arange(8).roll(1), class_tokens_only=True)
        computed[rate] = sum(seen)
    assert computed[0.5] < 0.85 * computed[0.0]
