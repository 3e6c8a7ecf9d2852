"""The torch backend on tensors that lie in memory in any way, and under PyTorch's own switches."""

import layout_cases
import pytest
import torch
from ops_cases import normal, packed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dca_triton import ops
from dca_triton.ops import torch_backend

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


def test_packed_projections_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual layouts cost no copy; only other layouts are copied."""
    copies: list[tuple[int, ...]] = []
    contiguous = Tensor.contiguous

    def counted(x: Tensor, *args: object, **options: object) -> Tensor:
        if not x.is_contiguous():
            copies.append(x.stride())
        return contiguous(x, *args, **options)

    monkeypatch.setattr(Tensor, "contiguous", counted)
    q, k, v = packed(2, 9, 3).unbind(2)
    for queries in (q, q[:, :1], q[:, ::2], q[:1], k.clone(memory_format=torch.contiguous_format)):
        torch_backend.attention_with_lse(queries, k[: len(queries)], v[: len(queries)], 0.25)
    assert {len(strides) for strides in copies} <= {3}  # of the log-sum-exp only
    heads_first = q.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    torch_backend.attention_with_lse(heads_first, k, v, 0.25)
    assert heads_first.stride() in copies


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


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("alone", [0, 2])
def test_pairs_are_the_same_where_an_index_cannot_be_read(elsewhere: bool, alone: int) -> None:
    """Views joined once, as on a CPU, and a gather, as on a GPU and under a compiler."""
    own, others = normal(5, 4, 2, 3), normal(3, 6, 2, 3, seed=1) if elsewhere else None
    partners = [2, 0, 2, 1, 0]
    gathered = torch_backend._gathered_pairs(own, others, torch.tensor(partners))[alone:]
    sizes = [alone, 5 - alone] if alone else [5]
    assert torch.equal(torch_backend._pairs(own.split(sizes), others, partners[alone:]), gathered)


def test_local_attention_computes_no_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*arguments: object) -> Tensor:
        raise AssertionError("the log-sum-exp is computed")

    monkeypatch.setattr(torch_backend, "_log_sum_exp", computed)
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
