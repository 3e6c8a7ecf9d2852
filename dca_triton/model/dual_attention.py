"""The dual cross-attention model: a timm ViT with SA, GLCA and (in training) PWCA branches and heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..arguments import raise_faults
from ..branches import BRANCHES, Branch, Readout, Task
from ..ops import Backend
from ..ops.rows import take_rows
from .attention_maps import attention_maps
from .backbone import Backbone
from .blocks import PairAttention, Trace, first_row
from .checks import (
    check_arguments,
    check_branches,
    check_heads,
    check_inputs,
    check_pwca_blocks,
    check_rollout,
    warn_of_ignored,
)
from .glca import GlobalLocalAttention
from .heads import Head, branch_head, width_of
from .hub import HubMixin
from .layouts import paper_blocks, reference_blocks
from .rollout import RolloutCache
from .side_information import SideInformationEmbedding, Sides, argument_faults
from .streams import BranchStreams


class DualAttentionModel(BranchStreams, HubMixin):
    """Dual cross-attention learning (Zhu et al., CVPR 2022) on a timm vision transformer.

    Args:
        backbone_name: A timm VisionTransformer, Eva, Beit or Cait, e.g. "deit_tiny_patch16_224" or
            "vit_small_patch16_dinov3". layout="paper" also takes a SwinTransformer or SwinTransformerV2, with
            branches=("sa", "pwca"). layout="reference" also takes other models with a class token.
        num_classes: Classes of each head, at least 1.
        task_type: "fgvc" (categories) or "reid" (identities; the outputs hold combined features).
        num_sa_blocks: SA blocks on top of the backbone; layout="reference" only.
        num_glca_blocks: GLCA blocks, at least 0; 0 is the same as `branches` without "glca". In
            layout="paper" the queries of each further block are the rows of the block before; its keys and
            values come from SA's tokens, as in the first block.
        num_pwca_blocks: Has no effect; the replication has this argument. PWCA uses the SA blocks.
        embed_dim: Has no effect; the replication has this argument. C is the backbone's.
        num_heads: Heads of the SA and GLCA blocks, a divisor of C; layout="reference" only.
        top_k_ratio: GLCA's share of patch tokens in (0, 1]: 0.1 for FGVC, 0.3 for Re-ID.
        drop_rate: Dropout of attention probabilities, projections and MLPs in [0, 1).
        drop_path_rate: Stochastic depth of the last block in [0, 1), rising linearly from 0.
        img_size: Pixels, a side or (height, width); without `patch_stride` multiples of the backbone's patch.
        cache_attention_rollout: Keep rollout rows of images seen in evaluation (see `RolloutCache`).
        branches: The branches to build: "sa" with or without "glca" and "pwca". A branch that is not built
            has no parameters, no outputs and no cost.
        sa_readout: What the heads of SA and PWCA read: the "class" token, the mean of the patch tokens
            ("local"), or "both" side by side. Without a class token "class" is timm's own pooling of the
            backbone, whose weights rollout starts from.
        glca_readout: What GLCA's head reads: the "class" token, the mean of the selected rows ("local"), or
            "both". With "class" and one block the selection changes neither logits nor gradients. Without a
            class token "class" is timm's own pooling of the selected rows, and the selection changes both.
        pwca_blocks: The first and the last SA block, counted from 1, in which an image also attends to its
            partner; all by default. Before the first one, SA and PWCA are computed once.
        head: "linear", "mlp" (Linear-BatchNorm1d-ReLU-Linear) or "bnneck" (a norm whose bias is frozen, then
            Linear; TransReID's); by default linear for fgvc and mlp for reid.
        patch_stride: Pixels from one patch to the next, at most the patch (TransReID: 12). Patches overlap,
            and there are floor((side - patch) / stride) + 1 on a side. The model does not see pixels after
            the last patch at the right and at the bottom. Positions are resampled to this grid; other weights
            stay as they are. For a VisionTransformer with learned positions. With None, patches do not
            overlap.
        cameras: The numbers of the cameras that have an embedding (side information embedding, SIE, of
            TransReID), as `forward` takes them; none by default. For "reid", with a VisionTransformer, in
            layout="paper" also with an Eva.
        views: The numbers of the views, such as the sides of a vehicle, in the same way.
        sie_weight: The factor λ of the embeddings of cameras and views, > 0.
        layout: "reference" computes the same as the replication mossbee/DCAL and loads its checkpoints;
            "paper" uses the backbone's own blocks for SA and PWCA, so it has about half the blocks.
        pretrained: Load timm's pretrained backbone weights.
        backend: "auto", "triton" or "torch" for the attentions (see `pair_attention`).
        **kwargs: Passed to `timm.create_model`.

    Raises:
        ValueError: Arguments that do not fit, or a backbone that the layout cannot use, with every
            reason.
        RuntimeError: The pretrained weights could not be loaded.

    Warns:
        UserWarning: A value of `num_sa_blocks`, `num_pwca_blocks`, `embed_dim` or `num_heads` that has no
            effect, unless it is the default or what the model has anyway.
    """

    sa_head: nn.Module
    glca_head: nn.Module
    pwca_head: nn.Module

    def __init__(
        self,
        backbone_name: str,
        num_classes: int,
        task_type: Task = "fgvc",
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
        branches: Sequence[Branch] = BRANCHES,
        sa_readout: Readout = "class",
        glca_readout: Readout = "class",
        pwca_blocks: tuple[int, int] | None = None,
        head: Head | None = None,
        patch_stride: int | None = None,
        cameras: Sequence[int] = (),
        views: Sequence[int] = (),
        sie_weight: float = 3.0,
        layout: Literal["reference", "paper"] = "reference",
        pretrained: bool = True,
        backend: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        arguments = locals()
        check_arguments(arguments)
        self.task_type = task_type
        self.num_classes = num_classes
        self.top_k_ratio = top_k_ratio
        self.layout = layout
        self.sa_readout: Readout = sa_readout
        self.glca_readout: Readout = glca_readout
        self.cache = RolloutCache() if cache_attention_rollout else None
        self.branches = tuple(b for b in BRANCHES if b in branches and (b != "glca" or num_glca_blocks))
        num_glca_blocks = num_glca_blocks if "glca" in branches else 0
        if layout == "paper":
            rates = dict(proj_drop_rate=drop_rate, attn_drop_rate=drop_rate, drop_path_rate=drop_path_rate)
            self.backbone = Backbone(
                backbone_name, layout, pretrained, img_size, patch_stride, **rates, **kwargs
            )
            check_branches(self.branches, self.backbone, backbone_name)
            self.glca_blocks = paper_blocks(self.backbone, num_glca_blocks)
        else:
            self.backbone = Backbone(backbone_name, layout, pretrained, img_size, patch_stride, **kwargs)
            check_heads(num_heads, self.backbone.embed_dim)
            self.sa_blocks, self.glca_blocks = reference_blocks(
                self.backbone.embed_dim, num_heads, num_sa_blocks, num_glca_blocks, drop_rate, drop_path_rate
            )
        readouts = {sa_readout, glca_readout if "glca" in self.branches else sa_readout}
        if self.backbone.pooling == "map" and readouts == {"local"}:
            self.backbone.drop_attention_pooling()
        check_pwca_blocks(pwca_blocks, len(self._sa_blocks))
        first, last = (1, len(self._sa_blocks)) if pwca_blocks is None else pwca_blocks
        self.pwca_blocks = first, last
        self.embed_dim = self.backbone.embed_dim
        for branch in self.branches:
            readout = glca_readout if branch == "glca" else sa_readout
            own = branch_head(width_of(readout, self.embed_dim), num_classes, task_type, head)
            self.add_module(f"{branch}_head", own)
        raise_faults(argument_faults(self.backbone.model, layout, task_type, cameras, views))
        self.sie: SideInformationEmbedding | None = None
        if cameras or views:
            self.sie = SideInformationEmbedding(cameras, views, self.embed_dim, sie_weight)
        self.backend = backend
        blocks, attention = len(self._sa_blocks), cast(PairAttention, self._sa_blocks[-1].attn)
        present = {"num_sa_blocks": blocks, "num_pwca_blocks": blocks, "num_heads": attention.num_heads}
        warn_of_ignored(arguments, present | {"embed_dim": self.embed_dim})

    @property
    def backend(self) -> Backend:
        """The backend of every attention and of the rollout. You can change it at any time."""
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._backend: Backend = backend
        for module in self.modules():
            if isinstance(module, PairAttention | GlobalLocalAttention):
                module.backend = backend

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the blocks: Accelerate makes each block one unit of FSDP or of a device map."""
        own = self.backbone.blocks if self.layout == "paper" else getattr(self.backbone.model, "blocks", [])
        return sorted({type(block).__name__ for block in (*own, *self._sa_blocks, *self.glca_blocks)})

    def forward(
        self,
        x: Tensor,
        x_pair: Tensor | None = None,
        *,
        partner_index: Tensor | None = None,
        class_tokens_only: bool = False,
        cameras: Tensor | None = None,
        views: Tensor | None = None,
        pair_cameras: Tensor | None = None,
        pair_views: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits and features of every branch.

        Args:
            x: Images (B, 3, h, w), floating point.
            x_pair: The distractor of each image, shaped as x. Used in training only, as in the replication.
                A training step without pairs gives `pwca_head` no gradient, and DistributedDataParallel waits
                for it: leave "pwca" out of `branches` for such a training.
            partner_index: Instead of `x_pair`, the row of x that is each image's distractor (B,), -1 = none;
                nothing of it is computed again. Used in training only.
            class_tokens_only: Features hold the class token alone (B, 1, C). The model computes only what
                they and the logits need: with a class-token readout the last block computes one query row (in
                layout="paper" that of PWCA, since GLCA reads all of SA's tokens), and no rollout is computed
                where no selected patch reaches GLCA's readout. The logits are the same. Without a class token
                the features are the embedding (B, 1, C), or (B, 1, 2C) with a readout of "both".
            cameras: The cameras of x (B,), int32 or int64, by their numbers in the model's `cameras`. A photo
                with a negative number gets the mean of the embeddings. In evaluation, a photo with an unknown
                number gets it, too, and with None all photos get it. In training, a model with `cameras`
                requires them.
            views: The views of x (B,), in the same way, for a model with `views`.
            pair_cameras: The cameras of x_pair. With `partner_index` a distractor has its own camera.
            pair_views: The views of x_pair.

        Returns:
            sa_logits, glca_logits (B, K); sa_features (B, N, C); glca_features (B, N, C), in layout="paper"
            its selected rows (B, 1 + R, C), class token first, or (B, R, C) without one; in training with a
            pair pwca_logits and pwca_features; for reid combined_features, the embeddings of SA and GLCA side
            by side. With a readout other than "class", or without a class token, also each branch's
            embedding, which its head reads: sa_embedding, glca_embedding, pwca_embedding (B, C), or (B, 2C)
            with "both". A branch that is not in `branches` has no entries.

        Raises:
            ValueError: Inputs that do not fit, with every reason: also images of other channels or another
                size than the backbone's (with dynamic_img_size, a size that the patch does not divide), and
                pairs for a model without PWCA.
        """
        sides = Sides(cameras, views, pair_cameras, pair_views)
        takes_pairs = "pwca" in self.branches
        check_inputs(
            self.backbone, x, x_pair, partner_index, takes_pairs, self.sie, sides, needs_sides=self.training
        )
        if not self.training:
            x_pair = partner_index = None
        selects = self.selects(class_tokens_only)
        class_token = self.backbone.num_class_tokens
        streams = self.sa_and_pwca(x, x_pair, partner_index, class_tokens_only, selects, sides)
        features = {"sa": streams.sa}
        embeddings = {"sa": self.read_out_sa(streams.sa)}
        if "glca" in self.branches:
            selected = self.select(self.rollout(streams, cached=True)) if selects else first_row(x)
            glca = features["glca"] = self.local_branch(streams, selected, class_tokens_only)
            rows = glca if class_tokens_only or self.layout == "paper" else take_rows(glca, selected)
            embeddings["glca"] = self.read_out_glca(rows)
        if streams.pwca is not None:
            features["pwca"] = streams.pwca
            embeddings["pwca"] = self.read_out_sa(streams.pwca)
        outputs = {f"{b}_logits": self.get_submodule(f"{b}_head")(e) for b, e in embeddings.items()}
        if class_tokens_only and not class_token:
            features = {b: e[:, None] for b, e in embeddings.items()}
        elif class_tokens_only:
            features = {b: x[:, :1].clone() for b, x in features.items()}
        outputs |= {f"{b}_features": x for b, x in features.items()}
        if self.task_type == "reid":
            outputs["combined_features"] = torch.cat(
                [embeddings[b] for b in ("sa", "glca") if b in embeddings], 1
            )
        if (self.sa_readout, self.glca_readout) != ("class", "class") or not class_token:
            outputs |= {f"{b}_embedding": e for b, e in embeddings.items()}
        return outputs

    def get_cache_stats(self) -> dict[str, float]:
        """Per image: cache_hits, cache_misses, hit_rate in [0, 1] and cache_size in entries."""
        return (self.cache or RolloutCache()).stats()

    def clear_attention_cache(self) -> None:
        """Forget every cached rollout row and reset the statistics."""
        if self.cache is not None:
            self.cache.clear()

    def sides_of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The "camera" and "view" of a batch as `forward` takes them, on the model's device; only those that
        the model has embeddings of, and that the batch holds.
        """
        return {} if self.sie is None else self.sie.of_batch(batch)

    @torch.no_grad()
    def extract_features(
        self, x: Tensor, cameras: Tensor | None = None, views: Tensor | None = None
    ) -> Tensor:
        """Embeddings of images x (B, 3, h, w): combined features for reid, those of SA and GLCA side by side
        (B, 2C), or SA's (B, C) for fgvc, in the model's dtype or autocast's. An embedding has 2C features
        with a readout of "both". Cameras and views (B,) are as in `forward`. Raises ValueError as `forward`.
        """
        outputs = self(x, class_tokens_only=True, cameras=cameras, views=views)
        if self.task_type == "reid":
            return outputs["combined_features"]
        return outputs.get("sa_embedding", outputs["sa_features"][:, 0])

    @torch.no_grad()
    def get_attention_maps(
        self, x: Tensor, cameras: Tensor | None = None, views: Tensor | None = None
    ) -> dict[str, Any]:
        """Attention maps of x (B, 3, h, w) for pictures, under the reference's names; only here are they
        kept. Cameras and views (B,) are as in `forward`.

        Returns:
            sa_attention_weights, a list of (B, H, N, N) for each SA block; accumulated_attention, the rollout
            (B, N, N); glca_attention_maps, for "glca_block_0", ... the attention_map (B, H, 1 + R, N) of the
            selected_indices (B, 1 + R), class token first.

        Raises:
            ValueError: As `forward`, or a backbone without a rollout.
        """
        check_rollout(self.backbone)
        sides = Sides(cameras, views)
        check_inputs(self.backbone, x, sie=self.sie, sides=sides)
        streams, local = self.sa_and_pwca(x, sides=sides), Trace()
        selected = self.select(self.rollout(streams))
        if "glca" in self.branches:
            self.local_branch(streams, selected, trace=local)
        return attention_maps(streams.sa_traces, local.take(), selected)

    def freeze_backbone(self, freeze: bool = True) -> None:
        """Turn gradients of the backbone's parameters off (or on)."""
        self.backbone.requires_grad_(not freeze)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn activation checkpointing on (or off): the backward pass computes each block again."""
        self.backbone.model.set_grad_checkpointing(enable)
        for block in self._sa_blocks:
            block.grad_checkpointing = enable  # type: ignore[assignment]

    def get_parameter_groups(self, lr_backbone: float, lr_attention: float) -> list[dict[str, Any]]:
        """Optimizer groups of the backbone and of everything on top of it; each parameter is in one group."""
        backbone = list(self.backbone.parameters())
        own = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": backbone, "lr": lr_backbone}, {"params": own, "lr": lr_attention}]
