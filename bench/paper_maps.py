"""The paper layout with attention maps, and timm's fine-tuning of the same backbone, its SA branch alone."""

import timm
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel

from .formulations import Formulation, Logits, attention_map, heads, rest, select, with_pair


class PaperMaps(Formulation):
    """The paper layout with attention maps and no shortcuts; its outputs are the oracle of that layout."""

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """As in `Maps`."""
        model = self.model
        tokens = self.features(images)
        norm = model.backbone.model.norm
        sa, maps = self.sa(tokens)
        block = model.glca_blocks[0]
        selected = select(model, maps)[:, :, None]
        q, k, v = heads(block, sa)
        local = attention_map(torch.take_along_dim(q, selected[:, None], 2), k) @ v
        glca = rest(block, torch.take_along_dim(sa, selected, 1), local)
        outputs = {
            "sa_logits": model.sa_head(norm(sa)[:, 0]),
            "glca_logits": model.glca_head(norm(glca)[:, 0]),
        }
        if partner_index is not None:
            pwca = tokens
            first, last = model.pwca_blocks
            for number, block in enumerate(model.backbone.model.blocks, 1):
                own = heads(block, pwca)
                paired = first <= number <= last
                q, k, v = with_pair(own, tuple(t[partner_index] for t in own)) if paired else own
                pwca = rest(block, pwca, attention_map(q, k) @ v)
            outputs["pwca_logits"] = model.pwca_head(norm(pwca)[:, 0])
        return outputs

    def sa(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The backbone's blocks on its tokens (B, N, C), and the map of each (B, H, N, N)."""
        maps = []
        for block in self.model.backbone.model.blocks:
            q, k, v = heads(block, tokens)
            maps.append(attention_map(q, k))
            tokens = rest(block, tokens, maps[-1] @ v)
        return tokens, maps


class PaperSAMaps(PaperMaps):
    """The SA branch of `PaperMaps` alone: what timm's fine-tuning of the backbone must equal."""

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """Images (B, 3, h, w) -> sa_logits (B, K)."""
        tokens, _ = self.sa(self.model.backbone(images))
        return {"sa_logits": self.model.sa_head(self.model.backbone.model.norm(tokens)[:, 0])}


class SAAlone(nn.Module):
    """timm's own model of the backbone, with the weights of the paper layout's SA branch and its head."""

    def __init__(self, model: DualAttentionModel, backbone_name: str, img_size: int) -> None:
        super().__init__()
        backbone, head = (part.state_dict(keep_vars=True) for part in (model.backbone.model, model.sa_head))
        self.vit = timm.create_model(backbone_name, num_classes=model.num_classes, img_size=img_size)
        weights = backbone | {f"head.{name}": parameter for name, parameter in head.items()}
        self.vit.load_state_dict(weights, assign=True)  # the very parameters, so that gradients compare

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """Images (B, 3, h, w) -> sa_logits (B, K)."""
        return {"sa_logits": self.vit(images)}
