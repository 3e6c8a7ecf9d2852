"""timm's transformer block on the streams of DCAL, with attention through the public operations.

Blocks and attentions are timm's own classes with another forward, so weights and their names are timm's. They
are called, never run from outside: hooks, adapters, wrappers and replaced forwards take effect.
"""

import functools
import warnings
from typing import NamedTuple

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import DropPath
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..ops import Backend, Partners, local_attention, pair_attention, torch_backend
from ..ops.torch_backend import take_rows


class BlockTrace(NamedTuple):
    """What a block leaves for rollout: queries, keys (B, N, H, D) and log-sum-exp (B, H, N), no gradient."""

    q: Tensor
    k: Tensor
    lse: Tensor

    def of(self, images: slice) -> "BlockTrace":
        """Those of some images."""
        return BlockTrace(self.q[images], self.k[images], self.lse[images])


class Trace:
    """Collects what the blocks leave, first to last, until it is taken.

    It is an object of its own and no list, so that wrappers which rebuild a module's arguments (FSDP2,
    checkpointing) hand on this very object. A block that is recomputed in the backward pass records nothing.
    """

    def __init__(self) -> None:
        self.blocks: list[BlockTrace] = []
        self.open = True

    def record(self, q: Tensor, k: Tensor, lse: Tensor) -> None:
        if self.open:
            self.blocks.append(BlockTrace(q.detach(), k.detach(), lse))

    def take(self) -> list[BlockTrace]:
        """All of it; nothing is kept or recorded from now on."""
        blocks, self.blocks, self.open = self.blocks, [], False
        return blocks


class Attention(TimmAttention):
    """timm's attention of each image to itself and to its partner, on some or all of the rows."""

    backend: Backend = "auto"

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        rows: Tensor | None = None,
        images: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Normed tokens x (B, N, C) -> (B, N, C), or (B, R, C) with `rows`.

        Arguments as in `Block`. `images` (K,): only the queries of these images are computed -> (K, ·, C).
        """
        q, k, v = self.project(x)
        partner_k, partner_v = (None, None) if partner_x is None else self.project_keys(partner_x)
        if images is not None:
            if pairs is not None:  # others may attend to an image that itself attends to nothing
                partner_k, partner_v = (k, v) if partner_k is None else (partner_k, partner_v)
                pairs = pairs.of(images) if isinstance(pairs, Partners) else pairs[images]
            q, k, v = q[images], k[images], v[images]
            rows = None if rows is None else rows[images]
        scale, dropout = self.head_dim**-0.5, dropout_rate(self.attn_drop)
        if rows is not None and pairs is None and trace is None and not dropout:
            out = local_attention(q, k, v, rows, scale, backend=self.backend)
        else:
            q = q if rows is None else take_rows(q, rows)
            out, lse = attend(q, k, v, partner_k, partner_v, pairs, dropout, scale, self.backend)
            if trace is not None:
                trace.record(q, k, lse)
        return self.proj_drop(self.proj(self.norm(out.flatten(2))))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, H, D), views of the packed projection, after timm's qk-norm."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).unbind(2)
        return self.q_norm(q), self.k_norm(k), v

    def project_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, H, D) alone; of a plain Linear, only their two thirds are computed."""
        if not is_plain(self.qkv, nn.Linear):
            _, k, v = self.project(x)
            return k, v
        own = self.num_heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[own:]
        packed = nn.functional.linear(x, self.qkv.weight[own:], bias)
        k, v = packed.unflatten(2, (2, self.num_heads, self.head_dim)).unbind(2)
        return self.k_norm(k), v


class Block(TimmBlock):
    """timm's pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)).

    `grad_checkpointing` keeps no activations of the block: the backward pass computes them again.
    """

    grad_checkpointing = False
    attn: Attention

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        rows: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Tokens x (B, N, C) -> (B, N, C), or (B, R, C) with `rows`. Without more it is timm's own block.

        Args:
            x: Tokens of every stream.
            partner_x: Tokens (B', N', C) whose keys and values are the partners'; x itself by default.
            pairs: Which row of `partner_x` each image is paired with (B,), -1 = none, or `pair_up` of it.
            rows: Compute only these queries (B, R), int64 in [0, N).
            trace: Receives queries, keys and log-sum-exp. Without it, stochastic depth computes no attention
                of the images that it drops.
        """
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return self._update(x, partner_x, pairs, rows, trace)
        if trace is None:
            return checkpoint(self._update, x, partner_x, pairs, rows, None, use_reentrant=False)
        x, left = checkpoint(self._update_and_trace, x, partner_x, pairs, rows, use_reentrant=False)
        trace.record(*left)
        return x

    def _update_and_trace(
        self, x: Tensor, partner_x: Tensor | None, pairs: Tensor | Partners | None, rows: Tensor | None
    ) -> tuple[Tensor, BlockTrace]:
        trace = Trace()
        return self._update(x, partner_x, pairs, rows, trace), trace.take()[0]

    def _update(
        self,
        x: Tensor,
        partner_x: Tensor | None,
        pairs: Tensor | Partners | None,
        rows: Tensor | None,
        trace: Trace | None,
    ) -> Tensor:
        kept = None if trace is not None else kept_rows(self.drop_path1, x)
        partner_x = None if partner_x is None else self.norm1(partner_x)
        attended = self.attn(self.norm1(x), partner_x, pairs, rows, kept, trace)
        x = x if rows is None else take_rows(x, rows)
        x = add_residual(x, self.drop_path1, kept, self.ls1(attended))
        kept = kept_rows(self.drop_path2, x)
        chosen = x if kept is None else x[kept]
        return add_residual(x, self.drop_path2, kept, self.ls2(self.mlp(self.norm2(chosen))))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None,
    partner_v: Tensor | None,
    pairs: Tensor | Partners | None,
    dropout: float,
    scale: float,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """`pair_attention`; with dropout on the probabilities it runs on PyTorch, and says so."""
    if not dropout:
        return pair_attention(q, k, v, partner_k, partner_v, pairs, scale, backend=backend)
    message = "drop_rate > 0 drops attention probabilities in training, which only the torch backend does"
    if backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run here: {message}; set drop_rate=0 or backend='auto'")
    if backend == "auto" and torch.cuda.is_available() and not torch.compiler.is_compiling():
        _warn_once(message)
    attention = ops.Attention(q, k, v, partner_k, partner_v, pairs, scale=scale)
    return torch_backend.pair_attention(attention, dropout)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def dropout_rate(drop: nn.Module) -> float:
    """The share of attention probabilities that `drop` drops now; they are never formed for it to be called.

    Raises TypeError for a module of another kind.
    """
    if not isinstance(drop, nn.Dropout | nn.Identity):
        raise TypeError(f"attn_drop must be nn.Dropout or nn.Identity, got {type(drop).__name__}")
    return drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` is `kind.forward` on its weights and nothing else.

    It is not with a subclass (adapters, parametrizations, FSDP), a replaced forward (offloading), any hook
    (pruning, old spectral norm), or a weight that is a subclass of Tensor (quantization, sharding).
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not any(len(those) for those in hooks)
        and not torch_module._has_any_global_hook()
        and all(p is None or type(p) in (nn.Parameter, Tensor) for p in module._parameters.values())
    )


def kept_rows(path: nn.Module, x: Tensor) -> Tensor | None:
    """The images of x (B, ...) that stochastic depth may keep, in order; None for all.

    Stochastic depth (Huang et al., ECCV 2016) does not compute what it drops, as in DINOv2: int(p B) images
    are dropped for certain, so that their branch need not be computed; `add_residual` drops so many of the
    others that each image is dropped with probability p.
    """
    if not is_plain(path, DropPath) or not path.training or not path.scale_by_keep:
        return None
    B = x.shape[0]
    skipped = int(path.drop_prob * B)  # type: ignore[operator]
    return torch.randperm(B, device=x.device)[skipped:].sort().values if skipped else None


def add_residual(x: Tensor, path: nn.Module, rows: Tensor | None, branch: Tensor) -> Tensor:
    """x (B, ...) plus a branch computed for the images `rows` (K,) alone: in expectation, for all of them."""
    if rows is None:
        return x + path(branch)
    assert isinstance(path, DropPath)
    keep, B, K = 1 - path.drop_prob, x.shape[0], rows.shape[0]
    kept = torch.rand(K, device=x.device) * K < keep * B  # K / B are kept with probability keep B / K
    scale = kept.to(x.dtype).view(K, *[1] * (x.dim() - 1)) / keep
    return x.index_add(0, rows, (branch * scale).to(x.dtype))


def first_row(x: Tensor) -> Tensor:
    """The class token's row of each image of x (B, ...), as an index (B, 1)."""
    return torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)


def init_linears(module: nn.Module) -> None:
    """Linear weights from a truncated normal of std 0.02, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
