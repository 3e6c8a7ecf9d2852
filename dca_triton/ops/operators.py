"""Attention with gradients: an operator of `torch.library`, and an autograd function for all other calls."""

from typing import Any

import torch
from torch import Tensor

from . import triton_launch
from .attention import Attention
from .dispatch import needs_dispatcher


def attention(op: str, a: Attention) -> tuple[Tensor, Tensor]:
    """Run `triton_launch.forward`, differentiable in q, k, v, partner_k and partner_v."""
    dispatched = needs_dispatcher(*a[:5], a.partner_index, a.rows)
    if not dispatched and not a.needs_gradient:
        return triton_launch.forward(op, a)
    inputs = op, *a.with_inverse().flat()
    return _attention(*inputs) if dispatched else _AttentionFunction.apply(*inputs)


@torch.library.custom_op("dca_triton::attention", mutates_args=())
def _attention(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    reader: Tensor | None,
    first: Tensor | None,
    index: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    a = Attention.from_flat(q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale)
    return triton_launch.forward(op, a)


@_attention.register_fake
def _(op, q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale):
    B, M, H, D = q.shape
    rows = M if index is None else index.shape[1]
    return q.new_empty(B, rows, H, D), q.new_empty(B, H, rows, dtype=torch.float32)


@torch.library.custom_op("dca_triton::attention_backward", mutates_args=())
def _attention_backward(
    op: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    partner_index: Tensor | None,
    reader: Tensor | None,
    first: Tensor | None,
    index: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Tensor]:
    a = Attention.from_flat(q, k, v, partner_k, partner_v, partner_index, reader, first, index, scale)
    return triton_launch.backward(op, a, dout, out, lse)


@_attention_backward.register_fake
def _(op, dout, q, k, v, partner_k, partner_v, partner_index, reader, first, index, out, lse, scale):
    inputs = [q, k, v] if partner_k is None else [q, k, v, partner_k, partner_v]
    return [x.new_empty(x.shape) for x in inputs]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.op, *tensors, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the log-sum-exp would cost a kernel
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:  # what follows in the graph has no gradient for out
        return (None,) * 11
    *inputs, out, lse = ctx.saved_tensors
    # With gradients enabled, PyTorch records the backward pass: the operator refuses second derivatives.
    if torch.is_grad_enabled() or needs_dispatcher(dout, *inputs):
        gradients = _attention_backward(ctx.op, dout, *inputs, out, lse, ctx.scale)
    else:
        a = Attention.from_flat(*(*inputs, ctx.scale))
        gradients = triton_launch.backward(ctx.op, a, dout, out, lse)
    partner_gradients = gradients[3:] or [None, None]
    return None, *gradients[:3], *partner_gradients, None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_save)


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = triton_launch.forward(op, Attention.from_flat(*inputs))
        _save(ctx, (op, *inputs), output)
        return output

    backward = staticmethod(_gradients)
