"""The torch backend on tensors that lie in memory in any way, and under PyTorch's own switches."""

import layout_cases
import pytest
import torch
from ops_cases import normal, packed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dca_triton import ops
from dca_triton.ops import fused

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMBINATIONS = 420  # of layouts, for each operation and dtype
GROUPS = 7  # makes a failure easy to reproduce


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.parametrize("operation", ["pairs", "local", "rollout"])
def test_any_layout(operation: str, group: int, dtype: torch.dtype) -> None:
    """q, k, v, those of the partners, lse, row and the incoming gradient lie independently of each other."""
    for seed in range(group, COMBINATIONS, GROUPS):
        layout_cases.agrees(getattr(layout_cases, operation), seed, dtype, "torch", [1, 3, 16, 17])


def test_the_switch_of_fused_attention_counts() -> None:
    """`sdpa_kernel` chooses the formula instead of the kernel, as in F.scaled_dot_product_attention."""
    q, k, v = (x[:, :3, :1].detach().requires_grad_() for x in packed(2, 9, 3).unbind(2))
    index = torch.tensor([1, -1])
    fused = ops.pair_attention(q, k, v, partner_index=index)
    with sdpa_kernel(SDPBackend.MATH):
        plain = ops.pair_attention(q, k, v, partner_index=index)
        # Only the formula can be differentiated twice.
        (gradient,) = torch.autograd.grad(plain[0].square().sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), q)
    torch.testing.assert_close(plain, fused)
    assert second.isfinite().all()
    with pytest.raises(RuntimeError, match="No viable backend"), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        ops.local_attention(q, k, v)


@pytest.mark.parametrize("unpaired", [None, 2, 5])
@pytest.mark.parametrize(
    ("others", "biased"), [(None, False), (None, True), (4, False), (4, True), (6, False)]
)
def test_pairs_are_the_same_where_an_index_cannot_be_read(
    unpaired: int | None, others: int | None, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU and under a compiler. Partners are of the batch, or others of 4 or 6 tokens."""
    own = [normal(5, 4, 2, 8, seed=i).requires_grad_() for i in range(3)]
    pool = [] if others is None else [normal(3, others, 2, 8, seed=i).requires_grad_() for i in (3, 4)]
    bias = normal(1, 2, 4, 4, seed=5).requires_grad_() if biased else None
    index = torch.tensor({None: [2, -1, 0, -1, 1], 2: [-1, -1, 0, -1, 1], 5: [-1] * 5}[unpaired])
    pairs = index if unpaired is None else ops.pair_up(index, 3 if pool else 5, unpaired)
    leaves = [*own, *pool, *([] if bias is None else [bias])]

    def run() -> list[Tensor]:
        out, lse = ops.pair_attention(*own, *(pool or (None, None)), pairs, bias=bias, backend="torch")
        return [out, lse, *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)]

    read = run()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(Tensor, "tolist", lambda _: pytest.fail("the index is read"))
    unread = run()
    torch.testing.assert_close(unread, read)


def test_local_attention_computes_no_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*arguments: object) -> Tensor:
        raise AssertionError("the log-sum-exp is computed")

    monkeypatch.setattr(fused, "_log_sum_exp", computed)
    q, k, v = packed(2, 9, 3).unbind(2)
    with sdpa_kernel(SDPBackend.MATH):
        ops.local_attention(q, k, v)
        with pytest.raises(AssertionError):
            ops.pair_attention(q, k, v)


def attended(x: Tensor, scale: Tensor) -> Tensor:
    """Attention whose queries a compiler lays out as it likes: (B, H, D, N) in, as from a 1x1 convolution."""
    q, k, v = (x * scale).permute(1, 0, 4, 2, 3).unbind(0)
    out, _ = ops.pair_attention(q, k, v, partner_index=torch.tensor([1, -1]))
    return out + ops.local_attention(q, k, v, torch.tensor([[2, 0], [1, 1]])).sum(1, keepdim=True)


def test_compiled_layouts() -> None:
    x, scale = normal(2, 3, 2, 16, 9).requires_grad_(), torch.tensor(1.5)  # (B, 3, H, D, N)
    torch.compiler.reset()
    compiled, eager = (
        torch.compile(attended, fullgraph=True, backend="aot_eager")(x, scale),
        attended(x, scale),
    )
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x) for out in (compiled, eager)))
