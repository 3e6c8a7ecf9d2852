"""Whole training and evaluation steps, of the library and of other implementations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_triton import DualAttentionModel, UncertaintyWeightedLoss
from dca_triton.training import BranchLoss

from .formulations import CompiledMaps, Logits, Maps, SelectedMaps
from .measure import Outputs, Path, Run
from .own_way import BestOwnWay, CompiledBestOwnWay
from .paper_maps import PaperMaps, PaperSAMaps, SAAlone
from .peers import peers
from .shapes import DTYPES, ModelShape, backend_on

Forward = Callable[..., Logits]
NUM_CLASSES = 200


class DCALLoss(nn.Module):
    """The loss of all branches, weighted by learned uncertainty."""

    def __init__(self) -> None:
        super().__init__()
        self.weighting, self.branch_loss = UncertaintyWeightedLoss(), BranchLoss()

    def forward(self, logits: Logits, labels: Tensor) -> Tensor:
        """Logits (B, K) of each branch and labels (B,) -> a scalar."""
        return self.weighting(self.branch_loss(logits, labels))["total_loss"]


class SALoss(nn.Module):
    """Cross entropy of the SA branch alone."""

    def forward(self, logits: Logits, labels: Tensor) -> Tensor:
        """As in `DCALLoss`."""
        return F.cross_entropy(logits["sa_logits"], labels)


def paths(shape: ModelShape, dtype: str, device: torch.device, training: bool) -> dict[str, Path]:
    """Return the paths of a training step (logits, loss, all gradients) or an evaluation step (logits)."""
    torch.manual_seed(0)
    torch.compiler.reset()  # graphs of other benchmarks would count toward the recompilation limit

    def dcal(**options: Any) -> DualAttentionModel:
        return DualAttentionModel(
            shape.backbone,
            NUM_CLASSES,
            img_size=shape.size,
            drop_path_rate=0.0,
            cache_attention_rollout=False,
            pretrained=False,
            backend=backend_on(device),
            **options,
        ).to(device)

    own, local, paper = dcal(), dcal(glca_readout="local"), dcal(layout="paper")
    depth = len(paper.backbone.model.blocks)
    late = dcal(layout="paper", pwca_blocks=(depth - 3, depth))
    sa_alone = SAAlone(paper, shape.backbone, shape.size)
    images = torch.randn(shape.B, 3, shape.size, shape.size, device=device)

    def step(forward: Forward, model: nn.Module = own, loss: type[nn.Module] = DCALLoss) -> Run:
        if training:
            return _train_step(forward, model, loss().to(device), images, dtype)
        return _evaluation_step(forward, model, images, dtype)

    def library(model: DualAttentionModel, class_tokens_only: bool = True) -> Run:
        def forward(images: torch.Tensor, partner_index: torch.Tensor | None = None) -> Logits:
            return model(images, partner_index=partner_index, class_tokens_only=class_tokens_only)

        return step(forward, model)

    return {
        "eager maps": Path(step(Maps(own))),
        "eager maps, compiled": Path(step(CompiledMaps(own))),
        "best own way": Path(step(BestOwnWay(own))),
        "best own way, compiled": Path(step(CompiledBestOwnWay(own))),
        "SA alone": Path(step(sa_alone, sa_alone, SALoss), oracle=step(PaperSAMaps(paper), sa_alone, SALoss)),
        "library, all tokens": Path(library(own, class_tokens_only=False)),
        "library": Path(library(own)),
        "library, local readout": Path(library(local), oracle=step(SelectedMaps(local), local)),
        "library, paper layout": Path(library(paper), oracle=step(PaperMaps(paper), paper)),
        "library, paper layout, PWCA in the last four blocks": Path(
            library(late), oracle=step(PaperMaps(late), late)
        ),
    } | {
        f"best own way, {name}": Path(step(BestOwnWay(own, attend)), peer=True)
        for name, attend in peers(device).items()
    }


def _train_step(
    forward: Forward, model: nn.Module, criterion: nn.Module, images: torch.Tensor, dtype: str
) -> Run:
    device = images.device
    partner_index = torch.arange(len(images), device=device).roll(1)
    labels = torch.arange(len(images), device=device) % NUM_CLASSES
    # A learning rate of 0 keeps the weights the same in every repetition and path.
    optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()], lr=0.0, fused=True)

    def run() -> Outputs:
        model.train()
        optimizer.zero_grad(set_to_none=False)
        with _autocast(device, dtype):
            logits = forward(images, partner_index)
            loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {**_detached(logits), "loss": loss.detach(), **gradients}

    return run


def _evaluation_step(forward: Forward, model: nn.Module, images: torch.Tensor, dtype: str) -> Run:
    @torch.no_grad()
    def run() -> Outputs:
        model.eval()
        with _autocast(images.device, dtype):
            return _detached(forward(images))

    return run


def _autocast(device: torch.device, dtype: str) -> torch.autocast:
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32")


def _detached(outputs: Logits) -> Outputs:
    return {name: value.detach() for name, value in outputs.items() if name.endswith("_logits")}
