"""Side information embedding: what camera and view add to an image's tokens (TransReID, section 3.3)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..arguments import shown
from ..ops.values import INTEGERS
from .family import TimmModule

KINDS = ("cameras", "views")


class Sides(NamedTuple):
    """Cameras and views (B,) of images and of their distractors x_pair, integers; None = all unknown."""

    cameras: Tensor | None = None
    views: Tensor | None = None
    pair_cameras: Tensor | None = None
    pair_views: Tensor | None = None

    def named(self) -> dict[str, Tensor | None]:
        """Each by its name; `_asdict` is opaque to torch.compile."""
        return dict(zip(self._fields, self, strict=True))


NO_SIDES = Sides()


class SideInformationEmbedding(nn.Module):
    """A learned vector S for each pair of a camera and a view (He et al., ICCV 2021, section 3.3).

    The tokens E that enter the ViT's blocks become E + λ S[camera, view], the class token too. A photo whose
    camera has no embedding gets the mean of S over the cameras; the same holds for views.

    Args:
        cameras: The data's own numbers of the cameras with an embedding; if empty, all share one row.
        views: Likewise of the views.
        width: C.
        weight: λ.
    """

    cameras: Tensor
    views: Tensor

    def __init__(self, cameras: Sequence[int], views: Sequence[int], width: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.table = nn.Parameter(torch.empty(max(1, len(cameras)), max(1, len(views)), width))
        nn.init.trunc_normal_(self.table, std=0.02)
        for kind, numbers in zip(KINDS, (cameras, views), strict=True):
            self.register_buffer(kind, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    def knows(self, kind: str) -> bool:
        """Whether there are embeddings of "cameras" or of "views"."""
        return self.get_buffer(kind).shape[0] > 0

    def strange(self, kind: str, numbers: Tensor) -> Tensor:
        """Which of the numbers (B,) are neither embedded nor negative, (B,) bool."""
        return (numbers >= 0) & (_places(numbers, self.get_buffer(kind)) < 0)

    def forward(self, cameras: Tensor | None, views: Tensor | None) -> Tensor:
        """λ S of images by their cameras and views (B,): (B, 1, C), or (1, 1, C) if both are None."""
        table = torch.cat([self.table, self.table.mean(0, keepdim=True)])  # at place -1 the mean
        table = torch.cat([table, table.mean(1, keepdim=True)], 1)
        row = -1 if cameras is None else _places(cameras, self.cameras)
        column = -1 if views is None else _places(views, self.views)
        return self.weight * table[row, column].view(-1, 1, table.shape[-1])

    def of_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch's "camera" (B,) and "view" (B,) as "cameras" and "views"; only those that are embedded."""
        held = {kind: batch[kind[:-1]] for kind in KINDS if self.knows(kind) and kind[:-1] in batch}
        return {kind: torch.as_tensor(own).long().to(self.table.device) for kind, own in held.items()}

    def of_images(self, sides: Sides, B: int, paired: bool) -> Tensor:
        """What is added to images (B, 1, C), and behind them to their distractors if they are `paired`."""
        own = self(sides.cameras, sides.views)
        if not paired:
            return own
        others = self(sides.pair_cameras, sides.pair_views)
        return torch.cat([part.expand(B, -1, -1) for part in (own, others)])


def _places(numbers: Tensor, known: Tensor) -> Tensor:
    """The places of numbers (B,) among the known ones (n,); -1 for others."""
    places = torch.arange(1, known.shape[0] + 1, device=known.device)
    return ((numbers[:, None] == known) * places).sum(1) - 1


def argument_faults(
    model: TimmModule, layout: str, task_type: str, cameras: Sequence[int], views: Sequence[int]
) -> list[str]:
    """Every reason why a model cannot have embeddings of these cameras and views."""
    faults = []
    for kind, numbers in zip(KINDS, (cameras, views), strict=True):
        if not numbers:
            continue
        if task_type != "reid":
            faults.append(f"{kind} must be empty for a model of {task_type!r}, got {shown(numbers)}")
        families = (VisionTransformer, Eva) if layout == "paper" else (VisionTransformer,)
        if not isinstance(model, families):
            names = " or ".join(family.__name__ for family in families)
            faults.append(
                f"{kind} must be empty in layout={layout!r} unless the backbone is a timm {names}, "
                f"got {shown(numbers)} for a {type(model).__name__}"
            )
    return faults


def side_faults(
    sie: SideInformationEmbedding | None, x: Tensor, x_pair: Tensor | None, needed: bool, sides: Sides
) -> list[str]:
    """Faults of the sides of images x; `needed`: those that the model has embeddings of must be given."""
    faults = []
    for name, numbers in sides.named().items():
        kind, of_pair = name.removeprefix("pair_"), name.startswith("pair_")
        known = sie is not None and sie.knows(kind)
        if numbers is None:
            if needed and known and not (of_pair and x_pair is None):
                faults.append(
                    f"{name} must be given in training, as the model has embeddings of {kind}, got None"
                )
        elif not known:
            faults.append(
                f"{name} must be None for a model without embeddings of {kind}, got {shown(numbers)}"
            )
        elif of_pair and x_pair is None:
            faults.append(f"{name} must be None without x_pair, got {shown(numbers)}")
        elif numbers.shape != x.shape[:1] or numbers.dtype not in INTEGERS or numbers.device != x.device:
            rule = f"(B,) = {tuple(x.shape[:1])} in int32 or int64 on {x.device}"
            faults.append(f"{name} must be {rule}, got {shown(numbers)}")
    return faults
