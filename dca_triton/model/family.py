"""What makes a class of timm's models a backbone of the paper's layout."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

TimmModule = Any  # a module of timm, whose attributes nn.Module's type does not declare


class Family(NamedTuple):
    """A family of timm's models.

    Attributes:
        model: timm's class of the models.
        blocks: For each of timm's blocks, the subclass that runs the streams of DCAL.
        attentions: The same for timm's attentions.
        embed: A model and images (B, 3, h, w) -> the tokens that enter the blocks (B, N, C); with rotary
            positions also the rotary table of all N tokens, see `PairBlock`.
        options: What `timm.create_model` takes to build these blocks by itself.
    """

    model: type[nn.Module]
    blocks: Mapping[type[nn.Module], type[nn.Module]]
    attentions: Mapping[type[nn.Module], type[nn.Module]]
    embed: Callable[[TimmModule, Tensor], Tensor | tuple[Tensor, Tensor]]
    options: Mapping[str, Any]

    def faults(self, model: TimmModule) -> list[str]:
        """Every reason why a model's own blocks cannot run the streams."""
        faults = [] if len(model.blocks) else ["it has no blocks"]
        for block in model.blocks:
            if type(block) not in self.blocks:
                faults.append(f"its blocks are {type(block).__name__}, not {_names(self.blocks)}")
            elif type(block.attn) not in self.attentions:
                faults.append(f"its attention is {type(block.attn).__name__}, not {_names(self.attentions)}")
        return faults

    def adopt(self, model: TimmModule) -> None:
        """Give blocks that timm built as its own the forward of their subclasses, which add no state."""
        for block in model.blocks:
            block.__class__ = self.blocks.get(type(block), type(block))
            block.attn.__class__ = self.attentions.get(type(block.attn), type(block.attn))


def _names(classes: Mapping[type[nn.Module], object]) -> str:
    return " or ".join(kind.__name__ for kind in classes)
