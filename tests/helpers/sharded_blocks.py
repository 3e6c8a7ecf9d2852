"""Run as a program by test_sharded_blocks: two processes joined by gloo; prints the results as JSON."""

import json
import os
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from small_training import Photos, small_model, small_trainer
from timm_streams import narrow_model, randomized
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import together

from dca_triton import DualAttentionModel
from dca_triton.training import training_loader
from dca_triton.training.sharding import whole

# A branch's features are rows of the streams' batch and are never written to.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")

BRANCHES = ("sa", "glca", "pwca")
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def build(layout: str) -> DualAttentionModel:
    if layout == "rotary":  # the paper's layout, with learned rotations outside the blocks
        torch.manual_seed(0)
        sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
        return narrow_model("vit_small_patch16_rope_mixed_ape_224", sizes, img_size=16).double().train()
    if layout == "biased":  # a bias in each block and one for all of them outside
        torch.manual_seed(0)
        sizes = {
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "patch_size": 8,
            "use_shared_rel_pos_bias": True,
        }
        return randomized(narrow_model("beit_base_patch16_224", sizes, img_size=16)).double().train()
    if layout == "talking":  # heads that mix their scores, and class attention
        torch.manual_seed(0)
        sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
        return randomized(narrow_model("cait_xxs24_224", sizes, img_size=16)).double().train()
    if layout == "windows":
        torch.manual_seed(0)
        sizes = {"depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2), "window_size": 2, "patch_size": 4}
        options = {"img_size": 16, "branches": ("sa", "pwca")}
        return randomized(narrow_model("swinv2_tiny_window8_256", sizes, **options)).double().train()
    return small_model(layout=layout, drop_path_rate=0.0).double().train()


def two_steps(model: nn.Module, rank: int, class_tokens_only: bool) -> None:
    """The second accumulates into the gradients of the first."""
    x, pair = IMAGES[4 * rank : 4 * rank + 2], IMAGES[4 * rank + 2 : 4 * rank + 4]
    for images, paired in (
        (x, {"x_pair": pair}),
        (pair, {"partner_index": torch.tensor([1, -1])}),
    ):
        outputs = model(images, **paired, class_tokens_only=class_tokens_only)
        found = [f"{branch}_logits" for branch in BRANCHES]
        sum(outputs[name].square().sum() for name in found if name in outputs).backward()


def sharded_against_replicated(rank: int, layout: str, class_tokens_only: bool) -> dict:
    replicated, sharded = build(layout), build(layout)
    two_steps(DistributedDataParallel(replicated), rank, class_tokens_only)
    mesh = init_device_mesh("cpu", (2,))
    blocks = {*sharded.backbone.blocks, *sharded._sa_blocks, *sharded.glca_blocks}
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
    model = build(layout)
    model.pwca_head.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second forward is refused if a gradient of the first is missing
        outputs = wrapped(IMAGES[2 * rank : 2 * rank + 2], class_tokens_only=True)
        sum(outputs[f"{branch}_logits"].square().sum() for branch in ("sa", "glca")).backward()
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


def trained(layout: str, folder: Path, **options: object) -> tuple[list, dict[str, list[Tensor]], int]:
    """The history, the weights and their average after two epochs, and the number of FSDP units."""
    model = small_model(layout=layout)

    def evaluate() -> dict[str, float]:
        with torch.no_grad():
            return {"score": float(model.eval()(IMAGES.float())["sa_logits"].sum())}

    batches = training_loader(Photos(8), 4, workers=0)
    # Adam would turn the rounding of gradients that are 0, those of the keys' biases, into whole steps.
    options |= {"optimizer": "sgd", "lr": 0.05}
    trainer = small_trainer(batches, model, ema_decay=0.7, evaluate=evaluate, evaluate_every=1, **options)
    history = trainer.train(2, folder)
    weights = {"model": model.state_dict(), "average": trainer.run.ema.module.state_dict()}
    units = sum(isinstance(module, FSDPModule) for module in model.modules())
    return history, {name: whole(list(state.values())) for name, state in weights.items()}, units


def trained_by_block(rank: int, layout: str, scratch: Path) -> dict:
    """Accelerate's FSDP2 with TRANSFORMER_BASED_WRAP, without the names of classes, against DDP.

    Accelerate offers FSDP for accelerators only: the processes claim to have one.
    """
    PartialState(cpu=True)
    expected_history, expected, _ = trained(layout, scratch / f"{layout} replicated {rank}")
    flags = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    os.environ.update(flags)
    replicated = PartialState._shared_state["distributed_type"]
    PartialState._shared_state["distributed_type"] = (
        DistributedType.MULTI_XPU
    )  # FSDP is for accelerators only
    history, found, units = trained(layout, scratch / f"{layout} sharded {rank}", checkpoint_blocks=True)
    PartialState._shared_state["distributed_type"] = replicated
    for flag in flags:
        del os.environ[flag]
    errors = {
        name: max((a - b).abs().max().item() for a, b in zip(found[name], expected[name], strict=True))
        for name in found
    }
    moved = max((a - b).abs().max().item() for a, b in zip(*expected.values(), strict=True))
    return {
        "units": units,
        "errors": errors,
        "moved": moved,
        "histories": [history, expected_history],
    }


def both(rank: int, scratch: Path) -> dict:
    """Everything in one process group, whose start takes longest."""
    found = {}
    for layout in ("paper", "reference"):
        for rows, only in (("all", False), ("class", True)):
            found[f"{layout}, {rows}"] = sharded_against_replicated(rank, layout, only)
        found[f"{layout}, no pairs"] = without_pairs(rank, layout)
        found[f"{layout}, trainer"] = trained_by_block(rank, layout, scratch)
    for backbone in ("rotary", "biased", "talking", "windows"):
        found[f"{backbone}, all"] = sharded_against_replicated(rank, backbone, False)
        found[f"{backbone}, class"] = sharded_against_replicated(rank, backbone, True)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    with TemporaryDirectory() as scratch:
        print(json.dumps(together(partial(both, scratch=Path(scratch)))))
