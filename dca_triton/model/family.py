"""What makes a class of timm's models a backbone of the paper's layout."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..branches import BRANCHES, Branch

TimmModule = Any  # a module of timm, whose attributes nn.Module's type does not declare


class Step(NamedTuple):
    """A module that the tokens of all streams pass.

    Attributes:
        module: A block of the streams, or any module that takes tokens and returns tokens.
        is_block: Blocks are numbered from 1 on, and attend to partners, are traced and checkpointed.
    """

    module: TimmModule
    is_block: bool = True


def steps_of_one_stage(model: TimmModule) -> list[Step]:
    """The blocks of a model that has nothing between them."""
    return [Step(block) for block in model.blocks]


class Family(NamedTuple):
    """A family of timm's models.

    Attributes:
        model: timm's class of the models.
        blocks: For each of timm's blocks, the subclass that runs the streams of DCAL.
        attentions: The same for timm's attentions.
        embed: A model and images (B, 3, h, w) -> the tokens that enter the blocks (B, N, C), or (B, h, w, C);
            with a table of positions that the blocks share also the table, see `PairBlock`.
        steps: A model -> all modules between `embed` and the final norm, first to last; a block is the last.
        branches: What can be trained.
        missing: Why the other branches cannot.
        merging: A model -> how many patches, in height and in width, become one of its last tokens.
        checkpoint_filter: A file's weights and a model -> the weights under timm's names, with positions
            resampled to the model's size; None where timm's own filter does this.
    """

    model: type[nn.Module]
    blocks: Mapping[type[nn.Module], type[nn.Module]]
    attentions: Mapping[type[nn.Module], type[nn.Module]]
    embed: Callable[[TimmModule, Tensor], Tensor | tuple[Tensor, Tensor]]
    steps: Callable[[TimmModule], list[Step]] = steps_of_one_stage
    branches: tuple[Branch, ...] = BRANCHES
    missing: str = ""
    merging: Callable[[TimmModule], int] = lambda model: 1
    checkpoint_filter: Callable[[dict[str, Any], TimmModule], dict[str, Any]] | None = None

    def blocks_of(self, model: TimmModule) -> list[TimmModule]:
        """The blocks of a model, which are counted from 1."""
        return [step.module for step in self.steps(model) if step.is_block]

    def faults(self, model: TimmModule) -> list[str]:
        """Every reason why a model's own blocks cannot run the streams."""
        blocks = self.blocks_of(model)
        faults = [] if blocks else ["it has no blocks"]
        for block in blocks:
            if type(block) not in self.blocks:
                faults.append(f"its blocks are {type(block).__name__}, not {_names(self.blocks)}")
            elif type(block.attn) not in self.attentions:
                faults.append(f"its attention is {type(block.attn).__name__}, not {_names(self.attentions)}")
        return faults

    def adopt(self, model: TimmModule) -> None:
        """Give blocks that timm built as its own the forward of their subclasses, which add no state."""
        for block in self.blocks_of(model):
            block.__class__ = self.blocks.get(type(block), type(block))
            block.attn.__class__ = self.attentions.get(type(block.attn), type(block.attn))


def _names(classes: Mapping[type[nn.Module], object]) -> str:
    return " or ".join(kind.__name__ for kind in classes)
