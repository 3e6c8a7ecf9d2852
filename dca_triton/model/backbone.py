"""A timm vision transformer as the backbone of both layouts: its tokens, blocks, norm and pooling."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..branches import BRANCHES, Branch, Readout
from .creation import both_sides, create, patch_of, size_faults
from .families import family_of
from .family import Family, Step, TimmModule
from .overlap import Overlap, set_stride
from .pooling import pooled_from, pooling_of, pooling_weights
from .vit import VIT
from .vit import features as vit_features


class Backbone(nn.Module):
    """A timm vision transformer under the name `model`, as the reference's checkpoints have it.

    Args:
        name: A timm model with a class token, or one of `FAMILIES` that pools its tokens by "avg" or "map".
        layout: "paper", which takes the models of `FAMILIES`, or "reference".
        pretrained: Load timm's pretrained weights.
        img_size: Pixels, a side or (height, width); multiples of the patch.
        patch_stride: Pixels from one patch to the next, at most the patch; for a VisionTransformer.
        **kwargs: Passed to `timm.create_model`.

    Attributes:
        overlap: The geometry of overlapping patches; None where they lie side by side.

    Raises:
        ValueError: `name` is not a timm model, the layout cannot use it, or the patch does not divide the
            image size; the message gives every reason.
        RuntimeError: Pretrained weights could not be loaded; the message shows how to pass a local file.
    """

    def __init__(
        self,
        name: str,
        layout: str,
        pretrained: bool,
        img_size: int | tuple[int, int],
        patch_stride: int | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        self.model: TimmModule
        self.overlap: Overlap | None
        self.model, self.overlap = create(name, layout, pretrained, img_size, patch_stride, kwargs)
        if self.overlap is not None:
            set_stride(self.model, self.overlap, both_sides(img_size))
        self.num_prefix_tokens: int = getattr(self.model, "num_prefix_tokens", 0)
        self.embed_dim: int = self.model.num_features
        # Calling the ViT, which is what hooks and offloading see, gives the tokens that enter the SA blocks.
        self.model.forward = self.model.forward_features
        if isinstance(self.model, VIT.model):
            self.model.forward = functools.partial(vit_features, self.model)
        self.branches: tuple[Branch, ...] = BRANCHES
        self.missing = ""
        merging = 1
        if layout == "paper":
            family = self._family
            self.branches, self.missing = family.branches, family.missing
            merging = family.merging(self.model)
            family.adopt(self.model)
            if self.pooling == "class":
                self.drop_attention_pooling()
            self.model.forward = functools.partial(family.embed, self.model)
        self.in_chans: int = _channels(self.model)
        height, width = patch_of(self.model)
        self.token_size = height * merging, width * merging
        rows, columns = self.model.patch_embed.grid_size
        self.grid_size: tuple[int, int] = -(-rows // merging), -(-columns // merging)

    def forward(self, images: Tensor, side: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The tokens that enter the SA blocks: images (B, 3, h, w) -> (B, N, C), of a Swin (B, h', w', C).

        With layout="reference" these are the output of the whole ViT with its final norm; `side` (B, 1, C) is
        added to the tokens that enter the ViT's own blocks. With layout="paper" they are the output of the
        patch and position embedding, because the SA blocks are the ViT's own. A table of positions that the
        blocks share comes with them.
        """
        return self.model(images) if side is None else self.model(images, side)

    def embed(self, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """The paper's tokens plus `side` (B, 1, C), and for each block its table of positions, or None."""
        L, found = len(self.blocks), self(images)
        tokens, table = (found, None) if isinstance(found, Tensor) else found
        tokens = tokens if side is None else tokens + side.to(tokens.dtype)
        return tokens, list(table) if table is not None and table.dim() == 4 else [table] * L

    @property
    def _family(self) -> Family:
        family = family_of(self.model)
        assert family is not None, "the paper's layout takes no other"
        return family

    @property
    def steps(self) -> list[Step]:
        """What the tokens of `forward` pass in the paper's layout: blocks, and what lies between them."""
        return self._family.steps(self.model)

    @property
    def blocks(self) -> list[TimmModule]:
        """The blocks alone."""
        return self._family.blocks_of(self.model)

    def drop_attention_pooling(self) -> None:
        """Remove a pooling head that nothing reads: its weights would get no gradient."""
        if getattr(self.model, "attn_pool", None) is not None:
            self.model.attn_pool = None

    @property
    def pooling(self) -> str:
        """What stands for an image: the "class" token or, without one, timm's pooling, "avg" or "map"."""
        return pooling_of(self.model)

    @property
    def num_class_tokens(self) -> int:
        """1 with a class token, which then is the first of the rows that GLCA selects; 0 without."""
        return 1 if self.pooling == "class" else 0

    @property
    def norm(self) -> nn.Module:
        """The final norm of the tokens.

        Where timm pools first, `norm` is an Identity and `fc_norm` comes after pooling; then a class token
        gets `fc_norm`.
        """
        norm, after_pooling = self.model.norm, self._fc_norm
        return after_pooling if isinstance(norm, nn.Identity) and self.pooling == "class" else norm

    @property
    def _fc_norm(self) -> nn.Module:
        return getattr(self.model, "fc_norm", nn.Identity())

    def features(self, tokens: Tensor) -> Tensor:
        """The output of the blocks (B, M, C) or (B, h', w', C), after the final norm: (B, N, C)."""
        return self.norm(tokens).flatten(1, -2)

    def read_out(self, tokens: Tensor, readout: Readout, prefix: int | None = None) -> Tensor:
        """The embedding (B, C): what stands for an image, or the mean of patches; (B, 2C) for both.

        Args:
            tokens: (B, M, C), the class token first, if there is one.
            readout: "class" is timm's pooling where there is no class token.
            prefix: How many leading rows are not patches; all of the backbone's by default.
        """
        first = self.num_prefix_tokens if prefix is None else prefix
        parts = [] if readout == "local" else [self._summary(tokens, first)]
        if readout != "class":
            mean = tokens[:, first:].mean(1)
            parts.append(mean if self.pooling == "class" else self._fc_norm(mean))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _summary(self, tokens: Tensor, prefix: int) -> Tensor:
        if self.pooling == "class":
            return tokens[:, 0]
        pooled = tokens[:, min(prefix, pooled_from(self.model)) :]  # a head may read registers too
        return self._fc_norm(self.model.attn_pool(pooled) if self.pooling == "map" else pooled.mean(1))

    @torch.no_grad()
    def start_row(self, tokens: Tensor) -> Tensor | None:
        """The weights (B, N) with which pooling reads tokens (B, N, C), averaged over its heads, from which
        rollout starts; None for the class token's unit vector.
        """
        if self.pooling == "class":
            return None
        first = pooled_from(self.model)
        pooled = tokens[:, first:]
        if self.pooling == "map":
            weights = pooling_weights(self.model.attn_pool, pooled)
        else:
            weights = torch.full_like(pooled[:, :, 0], 1 / pooled.shape[1], dtype=torch.float32)
        return torch.nn.functional.pad(weights, (first, 0))

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the features of images (..., h, w)."""
        height, width = images.shape[-2:]
        if self.overlap is not None:
            return self.overlap.grid((height, width))
        rows, columns = self.token_size
        return -(-height // rows), -(-width // columns)

    def image_faults(self, name: str, images: Tensor) -> list[str]:
        """Return faults of images (B, channels, h, w): the number of channels, the height or the width."""
        embed: TimmModule = self.model.patch_embed
        _, channels, *size = images.shape
        fixed = getattr(embed, "strict_img_size", True)
        faults = [] if fixed else size_faults(name, tuple(size), patch_of(self.model))
        if channels != self.in_chans or (fixed and tuple(size) != tuple(embed.img_size)):
            height, width = embed.img_size if fixed else ("h", "w")
            shape = f"(B, {self.in_chans}, {height}, {width})"
            rule = f"{shape}, the backbone's size" if fixed else shape
            faults.append(f"{name} must be {rule}, got shape {tuple(images.shape)}")
        return faults

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.model.patch_embed.img_size


def _channels(model: TimmModule) -> int:
    """The number of image channels that the patch embedding's first convolution takes."""
    return next(m.in_channels for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d))
