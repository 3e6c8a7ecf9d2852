"""Blocks on several streams: the last block's one row, dropout on the torch path, GLCA's class token."""

import copy

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from dca_triton import modules, reference
from dca_triton.ops import Partners, partners

B, N, C, H = 3, 11, 32, 2
X = torch.randn(B, N, C, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([1, -1, 0])


def block(**options: object) -> Block:
    torch.manual_seed(0)
    return Block(C, H, qkv_bias=True, init_values=0.5, **options)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_without_partners_a_block_is_timms_own(qk_norm: bool) -> None:
    own = block(qk_norm=qk_norm).eval()
    out, _ = modules.run_block(own, X)
    torch.testing.assert_close(out, own(X))


def test_what_a_block_leaves_gives_back_its_attention_map() -> None:
    own = block().eval()
    _, (q, k, lse) = modules.run_block(own, X)
    weights = (reference.attention_scores(q, k, own.attn.scale) - lse[..., None]).exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, N))


@pytest.mark.parametrize("index", [None, INDEX])
def test_the_last_block_computes_the_class_tokens_row(index: Tensor | None) -> None:
    own = block().eval()
    whole, _ = modules.run_block(own, X, None, index)
    torch.testing.assert_close(modules.run_last_block(own, X, None, index), whole[:, :1])


def test_keys_alone_are_those_of_the_whole_projection() -> None:
    attn = block(qk_norm=True).attn
    _, k, v = modules.project_heads(attn, X)
    torch.testing.assert_close(modules.project_keys(attn, X), (k, v))


def test_selected_rows_of_a_whole_block() -> None:
    own = block().eval()
    index = torch.tensor([[0, 5], [0, 1], [0, 10]])
    expected = torch.take_along_dim(own(X), index[:, :, None], 1)
    torch.testing.assert_close(modules.run_local_block(own, X, index), expected)


def test_glca_replaces_the_selected_rows_before_the_projection() -> None:
    """The reference's formula, row by row."""
    torch.manual_seed(0)
    glca = modules.GLCABlock(C, H).eval()
    index = torch.tensor([[0, 5], [0, 1], [0, 10]])
    normed, own = glca.norm(X), glca.glca
    q, k, v = (p(normed).unflatten(2, (H, -1)) for p in (own.q_proj, own.k_proj, own.v_proj))
    attended = (reference.attention_weights(q, k) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    mixed = normed.clone()
    for b in range(B):
        for row in index[b].tolist():
            mixed[b, row] = attended[b, row]
    expected = X + own.proj(mixed)
    torch.testing.assert_close(glca(X, index), expected)
    torch.testing.assert_close(glca.class_token(X), expected[:, :1])


@pytest.mark.parametrize("index", [INDEX, partners(INDEX, B)], ids=["plain", "inverted"])
def test_dropout_of_probabilities_drops_and_keeps_the_mean(index: Tensor | Partners) -> None:
    own = block(attn_drop=0.5).train()
    still = copy.deepcopy(own).eval()
    torch.manual_seed(0)
    mean = torch.stack([modules.run_block(own, X, None, index)[0] for _ in range(400)]).mean(0)
    expected, _ = modules.run_block(still, X, None, index)
    assert not torch.equal(modules.run_block(own, X, None, index)[0], expected)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)


def test_dropout_refuses_the_triton_backend() -> None:
    own = block(attn_drop=0.5).train()
    for run in (
        lambda: modules.run_block(own, X, backend="triton"),
        lambda: modules.run_local_block(own, X, torch.zeros(B, 1, dtype=torch.long), backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"drop_rate > 0 .* set drop_rate=0 or backend='auto'"):
            run()
