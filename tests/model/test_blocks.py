"""Blocks on several streams: the last block's one row, dropout on the torch path, GLCA's class token."""

import copy

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor

from dca_triton import reference
from dca_triton.model.blocks import Trace
from dca_triton.model.glca import GLCABlock
from dca_triton.model.vit import Attention, Block
from dca_triton.ops import Partners, pair_up

B, N, C, H = 3, 11, 32, 2
X = torch.randn(B, N, C, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([1, -1, 0])


def block(**options: object) -> Block:
    torch.manual_seed(0)
    return Block(C, H, qkv_bias=True, init_values=0.5, attn_layer=Attention, **options)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_without_partners_a_block_is_timms_own(qk_norm: bool) -> None:
    own = block(qk_norm=qk_norm).eval()
    timms = TimmBlock(C, H, qkv_bias=True, init_values=0.5, qk_norm=qk_norm).eval()
    timms.load_state_dict(own.state_dict())
    torch.testing.assert_close(own(X), timms(X))


def test_what_a_block_leaves_gives_back_its_attention_map() -> None:
    own, trace = block().eval(), Trace()
    own(X, trace=trace)
    ((q, k, lse, _),) = trace.take()
    weights = (reference.attention_scores(q, k, own.attn.scale) - lse[..., None]).exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, N))
    own(X, trace=trace)
    assert not trace.take(), "what was taken is closed"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("index", [None, INDEX])
@pytest.mark.parametrize("partner", [None, X.flip(0)])
def test_selected_rows_of_a_whole_block(
    index: Tensor | None, partner: Tensor | None, checkpointing: bool
) -> None:
    own, rows = block().eval(), torch.tensor([[0, 5], [0, 1], [0, 10]])
    own.grad_checkpointing = checkpointing
    if index is None:
        partner = None
    expected = torch.take_along_dim(own(X, partner, index), rows[:, :, None], 1)
    queries = torch.take_along_dim(X, rows[:, :, None], 1)
    torch.testing.assert_close(own(queries, partner, index, X), expected)
    trace = Trace()
    torch.testing.assert_close(own(queries, partner, index, X, trace=trace), expected)
    ((q, *_),) = trace.take()
    assert q.shape == (B, 2, H, C // H)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_image_may_come_twice_with_and_without_its_partner(checkpointing: bool) -> None:
    own, images = block().eval(), torch.tensor([0, 1, 2, 0, 1, 2])
    own.grad_checkpointing = checkpointing
    index = torch.cat([torch.full((B,), -1), INDEX])
    for pairs in (index, pair_up(index, B)):
        torch.testing.assert_close(
            own(X, pairs=pairs, images=images), torch.cat([own(X), own(X, pairs=INDEX)])
        )


@pytest.mark.parametrize("bias", [False, True])
def test_keys_alone_are_those_of_the_whole_projection(bias: bool) -> None:
    attn = Attention(C, H, qkv_bias=bias, qk_norm=True, norm_layer=torch.nn.LayerNorm)
    q, k, v = attn.project(X)
    torch.testing.assert_close(attn.project_keys(X), (k, v))
    torch.testing.assert_close(attn.project_queries(X), q)


def test_glca_replaces_the_selected_rows_before_the_projection() -> None:
    """The reference's formula, row by row."""
    torch.manual_seed(0)
    glca = GLCABlock(C, H).eval()
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
    torch.testing.assert_close(
        glca(X, index, only_selected=True), torch.take_along_dim(expected, index[:, :, None], 1)
    )


@pytest.mark.parametrize("index", [INDEX, pair_up(INDEX, B)], ids=["plain", "inverted"])
def test_dropout_of_probabilities_drops_and_keeps_the_mean(index: Tensor | Partners) -> None:
    own = block(attn_drop=0.5).train()
    still = copy.deepcopy(own).eval()
    torch.manual_seed(0)
    mean = torch.stack([own(X, pairs=index) for _ in range(400)]).mean(0)
    expected = still(X, pairs=index)
    assert not torch.equal(own(X, pairs=index), expected)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)


def test_dropout_refuses_the_triton_backend() -> None:
    own = block(attn_drop=0.5).train()
    own.attn.backend = "triton"
    for arguments in ({"x": X}, {"x": X[:, :1], "context": X}):
        with pytest.raises(RuntimeError, match=r"drop_rate > 0 .* set drop_rate=0 or backend='auto'"):
            own(**arguments)
