"""The dual cross-attention model: a timm ViT with SA, GLCA and (in training) PWCA branches and heads."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ops import Backend
from ..reference import select_local
from .attention_maps import attention_maps
from .backbone import Backbone, TimmModule
from .blocks import Attention, BlockTrace, Trace
from .checks import check_arguments, check_heads, check_inputs
from .glca import GlobalLocalAttention
from .heads import branch_head
from .hub import HubMixin
from .layouts import (
    Streams,
    paper_blocks,
    paper_local,
    paper_streams,
    reference_blocks,
    reference_local,
    reference_streams,
)
from .rollout import RolloutCache, rollout_of


class DualAttentionModel(nn.Module, HubMixin):
    """Dual cross-attention learning (Zhu et al., CVPR 2022) on a timm vision transformer.

    Args:
        backbone_name: A timm vision transformer, e.g. "deit_tiny_patch16_224".
        num_classes: Classes of each head, at least 1.
        task_type: "fgvc" (linear heads) or "reid" (Linear-BatchNorm1d-ReLU-Linear heads, combined features).
        num_sa_blocks: SA blocks on top of the backbone; layout="reference" only.
        num_glca_blocks: GLCA blocks; layout="paper" has exactly 1.
        num_pwca_blocks: Accepted as in the reference; PWCA runs all SA blocks with their weights.
        embed_dim: Accepted as in the reference; C is the backbone's.
        num_heads: Heads of the own blocks, a divisor of C; layout="reference" only.
        top_k_ratio: GLCA's share of patch tokens in (0, 1]: 0.1 for FGVC, 0.3 for Re-ID.
        drop_rate: Dropout of attention probabilities, projections and MLPs in [0, 1).
        drop_path_rate: Stochastic depth of the last block in [0, 1), rising linearly from 0.
        img_size: Pixels, a side or (height, width); multiples of the backbone's patch.
        cache_attention_rollout: Keep rollout rows of images seen in evaluation (see `RolloutCache`).
        layout: "reference" computes what the reference implementation does, and loads its checkpoints;
            "paper" has the paper's cost: the backbone's own blocks carry SA and PWCA.
        pretrained: Load timm's pretrained backbone weights.
        backend: "auto", "triton" or "torch" for the attentions (see `pair_attention`).
        **kwargs: Passed to `timm.create_model`.

    Raises:
        ValueError: Arguments that do not fit, or a backbone that the layout cannot use, with every
            reason.
        RuntimeError: Pretrained weights that cannot be had.
    """

    def __init__(
        self,
        backbone_name: str,
        num_classes: int,
        task_type: Literal["fgvc", "reid"] = "fgvc",
        num_sa_blocks: int = 12,
        num_glca_blocks: int = 1,
        num_pwca_blocks: int = 12,
        embed_dim: int | None = None,
        num_heads: int = 12,
        top_k_ratio: float = 0.1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        img_size: int | tuple[int, int] = 224,
        cache_attention_rollout: bool = True,
        *,
        layout: Literal["reference", "paper"] = "reference",
        pretrained: bool = True,
        backend: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.task_type = task_type
        self.num_classes = num_classes
        self.top_k_ratio = top_k_ratio
        self.layout = layout
        self.cache = RolloutCache() if cache_attention_rollout else None
        if layout == "paper":
            rates = dict(proj_drop_rate=drop_rate, attn_drop_rate=drop_rate, drop_path_rate=drop_path_rate)
            self.backbone = Backbone(backbone_name, layout, pretrained, img_size, **rates, **kwargs)
            self.glca_blocks = paper_blocks(self.backbone)
        else:
            self.backbone = Backbone(backbone_name, layout, pretrained, img_size, **kwargs)
            check_heads(num_heads, self.backbone.embed_dim)
            self.sa_blocks, self.glca_blocks = reference_blocks(
                self.backbone.embed_dim, num_heads, num_sa_blocks, num_glca_blocks, drop_rate, drop_path_rate
            )
        self.embed_dim = self.backbone.embed_dim
        self.sa_head, self.glca_head, self.pwca_head = (
            branch_head(self.embed_dim, num_classes, task_type) for _ in range(3)
        )
        self.backend = backend

    @property
    def backend(self) -> Backend:
        """The backend of every attention and of the rollout; to be set at any time."""
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._backend: Backend = backend
        for module in self.modules():
            if isinstance(module, Attention | GlobalLocalAttention):
                module.backend = backend

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the blocks: Accelerate makes each block one unit of FSDP or of a device map."""
        own = getattr(self.backbone.model, "blocks", [])
        return sorted({type(block).__name__ for block in (*own, *self._sa_blocks, *self.glca_blocks)})

    def forward(
        self,
        x: Tensor,
        x_pair: Tensor | None = None,
        *,
        partner_index: Tensor | None = None,
        class_tokens_only: bool = False,
    ) -> dict[str, Tensor]:
        """Logits and features of every branch.

        Args:
            x: Images (B, 3, h, w), floating point.
            x_pair: The distractor of each image, shaped as x. Used in training only, as in the reference.
                A training step without pairs gives `pwca_head` no gradient; freeze it by
                `model.pwca_head.requires_grad_(False)` before DistributedDataParallel, which waits for it.
            partner_index: Instead of `x_pair`, the row of x that is each image's distractor (B,), -1 = none;
                nothing of it is computed again. Used in training only.
            class_tokens_only: Features hold the class token alone (B, 1, C); the last block then computes
                one query row (in layout="paper" that of PWCA, since GLCA reads all of SA's tokens), and with
                one GLCA block no rollout is needed, since no selected patch reaches the class token.
                The logits are the same.

        Returns:
            sa_logits, glca_logits (B, K); sa_features (B, N, C); glca_features (B, N, C), in layout="paper"
            its selected rows (B, 1 + R, C), class token first; in training with a pair pwca_logits and
            pwca_features; for reid combined_features (B, 2C), the class tokens of SA and GLCA.

        Raises:
            ValueError: Inputs that do not fit, with every reason: also images of other channels or another
                size than the backbone's (with dynamic_img_size, a size that the patch does not divide).
        """
        check_inputs(self.backbone, x, x_pair, partner_index)
        if not self.training:
            x_pair = partner_index = None
        streams = self.sa_and_pwca(x, x_pair, partner_index, class_tokens_only)
        selected = None
        if streams.traces:
            row = self._rollout(streams.sa_traces)
            selected = select_local(row, self.backbone.num_prefix_tokens, self.top_k_ratio)
        branches = {"sa": streams.sa, "glca": self.local_branch(streams.local, selected)}
        if streams.pwca is not None:
            branches["pwca"] = streams.pwca
        if class_tokens_only and selected is not None:
            branches = {branch: tokens[:, :1] for branch, tokens in branches.items()}
        sa, glca = branches["sa"], branches["glca"]
        outputs = {
            "sa_logits": self.sa_head(sa[:, 0]),
            "glca_logits": self.glca_head(glca[:, 0]),
            "sa_features": sa,
            "glca_features": glca,
        }
        if (pwca := branches.get("pwca")) is not None:
            outputs["pwca_logits"] = self.pwca_head(pwca[:, 0])
            outputs["pwca_features"] = pwca
        if self.task_type == "reid":
            outputs["combined_features"] = torch.cat([sa[:, 0], glca[:, 0]], 1)
        return outputs

    def sa_and_pwca(
        self,
        x: Tensor,
        x_pair: Tensor | None = None,
        partner_index: Tensor | None = None,
        class_tokens_only: bool = False,
    ) -> Streams:
        """SA's and PWCA's tokens, GLCA's input, and each block's trace where a rollout is needed.

        Arguments are those of `forward`, which checks them; pairs count in evaluation too.
        """
        class_row_only = class_tokens_only and len(self.glca_blocks) == 1
        streams_of = paper_streams if self.layout == "paper" else reference_streams
        return streams_of(self.backbone, self._sa_blocks, x, x_pair, partner_index, class_row_only)

    def local_branch(self, tokens: Tensor, selected: Tensor | None, trace: Trace | None = None) -> Tensor:
        """GLCA on `Streams.local` for the selected rows (B, 1 + R); None: for the class token alone."""
        if self.layout == "paper":
            return paper_local(self.backbone, self.glca_blocks, tokens, selected, trace)
        return reference_local(self.glca_blocks, tokens, selected, trace)

    @property
    def attention_scale(self) -> float:
        """The factor of the SA blocks' scores, 1/√D."""
        first: TimmModule = self._sa_blocks[0]
        return first.attn.head_dim**-0.5

    def _rollout(self, traces: list[BlockTrace]) -> Tensor:
        """The rollout rows (B, N), from the cache where they are known."""
        if self.cache is None or self.training or torch.compiler.is_compiling():
            return rollout_of(traces, self.attention_scale, self.backend)
        return self.cache.lookup(traces, self.attention_scale, self.backend)

    @property
    def _sa_blocks(self) -> nn.ModuleList:
        return self.backbone.model.blocks if self.layout == "paper" else self.sa_blocks

    def get_cache_stats(self) -> dict[str, float]:
        """Per image: cache_hits, cache_misses, hit_rate in [0, 1] and cache_size in entries."""
        return (self.cache or RolloutCache()).stats()

    def clear_attention_cache(self) -> None:
        """Forget every cached rollout row and reset the statistics."""
        if self.cache is not None:
            self.cache.clear()

    @torch.no_grad()
    def extract_features(self, x: Tensor) -> Tensor:
        """Embeddings of images x (B, 3, h, w): combined features (B, 2C) for reid, SA class tokens (B, C) for
        fgvc, in the model's dtype or autocast's. Raises ValueError as `forward`.
        """
        outputs = self(x, class_tokens_only=True)
        return outputs["combined_features"] if self.task_type == "reid" else outputs["sa_features"][:, 0]

    @torch.no_grad()
    def get_attention_maps(self, x: Tensor) -> dict[str, Any]:
        """Attention maps of x (B, 3, h, w) for pictures, under the reference's names; only here are they
        kept.

        Returns:
            sa_attention_weights, a list of (B, H, N, N) for each SA block; accumulated_attention, the rollout
            (B, N, N); glca_attention_maps, for "glca_block_0", ... the attention_map (B, H, 1 + R, N) of the
            selected_indices (B, 1 + R), class token first.

        Raises:
            ValueError: As `forward`.
        """
        check_inputs(self.backbone, x)
        streams, local = self.sa_and_pwca(x), Trace()
        row = rollout_of(streams.sa_traces, self.attention_scale, self.backend)
        selected = select_local(row, self.backbone.num_prefix_tokens, self.top_k_ratio)
        self.local_branch(streams.local, selected, local)
        return attention_maps(streams.sa_traces, local.take(), selected)

    def freeze_backbone(self, freeze: bool = True) -> None:
        """Stop (or resume) gradients of the backbone's parameters."""
        self.backbone.requires_grad_(not freeze)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep (or not) no activations within blocks: the backward computes them again, block by block."""
        self.backbone.model.set_grad_checkpointing(enable)
        for block in self._sa_blocks:
            block.grad_checkpointing = enable  # type: ignore[assignment]

    def get_parameter_groups(self, lr_backbone: float, lr_attention: float) -> list[dict[str, Any]]:
        """Optimizer groups: the backbone, and everything on top of it, each parameter once."""
        backbone = list(self.backbone.parameters())
        own = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": backbone, "lr": lr_backbone}, {"params": own, "lr": lr_attention}]
