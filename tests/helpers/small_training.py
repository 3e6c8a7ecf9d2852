"""A model, photos and a trainer small enough to be trained many times."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dca_triton.checkpoint import load_checkpoint
from dca_triton.description import Description
from dca_triton.model import DualAttentionModel
from dca_triton.training import DualAttentionTrainer, training_loader

CLASSES = 4


class Photos(Dataset):
    """Random photos, each with noise of its own whenever it is looked at."""

    def __init__(self, photos: int = 20, noise: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(photos) % CLASSES
        self.images = torch.randn(photos, 3, 16, 16, generator=generator) + self.labels[:, None, None, None]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = self.images[index] + self.noise * torch.randn(3, 16, 16)
        return {"image": image, "label": int(self.labels[index]), "path": f"{index}.jpg", "index": index}


def small_model(seed: int = 0, **options) -> DualAttentionModel:
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 8, "depth": 2, "top_k_ratio": 0.5}
    if options.get("layout") == "reference":
        sizes |= {"num_heads": 4, "num_sa_blocks": 2}
    return DualAttentionModel(
        "test_vit", CLASSES, **({"layout": "paper", "pretrained": False, **sizes} | options)
    )


def described(model: DualAttentionModel, **options) -> DualAttentionModel:
    """The model, with a description of its task and size, and of four classes of birds."""
    values = {
        "task": model.task_type,
        "classes": ("jay", "owl", "tit", "wren"),
        "size": model.backbone.img_size,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.1),
        "dataset": "folder",
        "resize": 20,
        "batch_size": 4,
        "photos": 4,
        "holdout": 0,
        "seed": 0,
    }
    model.description = Description(**(values | options))
    return model


def small_trainer(batches=None, model: DualAttentionModel | None = None, **options) -> DualAttentionTrainer:
    AcceleratorState._reset_state()  # Accelerate allows one precision in a process
    if batches is None:
        batches = training_loader(Photos(), 8, workers=0)
    return DualAttentionTrainer(
        small_model() if model is None else model,
        batches,
        **({"optimizer": "adamw", "lr": 1e-3, "progress": False} | options),
    )


def plain_loader(**options) -> DataLoader:
    """Shuffles and adds noise by PyTorch's own generator, as any user's loader does."""
    return DataLoader(Photos(), 8, shuffle=True, **options)


def bits(tree) -> list[bytes]:
    """Every tensor and number of a nested state, to be compared bit for bit."""
    if isinstance(tree, Tensor):
        return [tree.detach().contiguous().numpy().tobytes()]
    if isinstance(tree, dict):
        return [part for key in tree for part in (repr(key).encode(), *bits(tree[key]))]
    if isinstance(tree, list | tuple):
        return [part for value in tree for part in bits(value)]
    return [repr(tree).encode()]


def one_block_trainer(batches=None, **options) -> DualAttentionTrainer:
    """Resuming is the same for any number of blocks."""
    return small_trainer(batches, small_model(depth=1), **options)


class Stopped(Exception):
    pass


def epochs_of(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def continued(folder: Path, epochs: int = 3, **options) -> list[bytes]:
    one_block_trainer(**options).train(epochs, folder, resume="auto")
    return bits(load_checkpoint(folder / "checkpoint.pt"))
