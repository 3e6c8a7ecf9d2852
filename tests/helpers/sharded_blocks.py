"""Run as a program by test_sharded_blocks: two processes joined by gloo; prints the results as JSON."""

import json
import warnings

import torch
from small_training import small_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import together

from dca_triton import DualAttentionModel

# A branch's features are rows of the streams' batch and are never written to.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")

BRANCHES = ("sa", "glca", "pwca")
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def build(layout: str) -> DualAttentionModel:
    return small_model(layout=layout, drop_path_rate=0.0).double().train()


def two_steps(model: nn.Module, rank: int, class_tokens_only: bool) -> None:
    """The second accumulates into the gradients of the first."""
    x, pair = IMAGES[4 * rank : 4 * rank + 2], IMAGES[4 * rank + 2 : 4 * rank + 4]
    for images, paired in (
        (x, {"x_pair": pair}),
        (pair, {"partner_index": torch.tensor([1, -1])}),
    ):
        outputs = model(images, **paired, class_tokens_only=class_tokens_only)
        sum(outputs[f"{branch}_logits"].square().sum() for branch in BRANCHES).backward()


def sharded_against_replicated(rank: int, layout: str, class_tokens_only: bool) -> dict:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    replicated, sharded = build(layout), build(layout)
    two_steps(DistributedDataParallel(replicated), rank, class_tokens_only)
    mesh = init_device_mesh("cpu", (2,))
    blocks = {*sharded.backbone.model.blocks, *sharded._sa_blocks, *sharded.glca_blocks}
    for block in sorted(blocks, key=list(sharded.modules()).index):
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    two_steps(sharded, rank, class_tokens_only)
    error, units = 0.0, 0
    expected = dict(replicated.named_parameters())
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter.grad, DTensor), name
        units += 1
        whole = parameter.grad.full_tensor()
        error = max(error, (whole - expected[name].grad).abs().max().item())
    return {"sharded": units, "error": error}


def without_pairs(rank: int, layout: str) -> bool:
    torch.distributed.init_process_group("gloo")
    model = build(layout)
    model.pwca_head.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second forward is refused if a gradient of the first is missing
        outputs = wrapped(IMAGES[2 * rank : 2 * rank + 2], class_tokens_only=True)
        sum(outputs[f"{branch}_logits"].square().sum() for branch in ("sa", "glca")).backward()
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


def main() -> dict:
    found = {}
    for layout in ("paper", "reference"):
        for only in (False, True):
            found[f"{layout}, {'class' if only else 'all'}"] = together(
                lambda rank, layout=layout, only=only: sharded_against_replicated(rank, layout, only)
            )
        found[f"{layout}, no pairs"] = together(lambda rank, layout=layout: without_pairs(rank, layout))
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(main()))
