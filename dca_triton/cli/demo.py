"""The demo: a small DCAL model trained from scratch on the ORL faces, for categorization and for Re-ID."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..branches import Task
from ..data import ImageDataset, Splits, load_dataset, whole_batch_affine
from ..data.records import Item
from ..description import Description
from ..evaluation import evaluate_fgvc, evaluate_reid, topk_accuracy
from ..model import DualAttentionModel, explain
from ..training import DualAttentionTrainer, training_loader
from ..visualization import rollout_overlays, training_curves
from .experiment import evaluation_transform

SIZE = 48
MEAN, STD = 0.5, 0.25


class InMemory(Dataset[Item]):
    """A dataset of small photos decoded once."""

    def __init__(self, source: ImageDataset | None) -> None:
        assert source is not None
        self.items = [source[i] for i in range(len(source))]
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def face_transform(task: Task) -> Callable[[Any], Tensor]:
    """Resize to 48 x 48 and normalize, as `dca-triton evaluate` does it."""
    return evaluation_transform(task, (SIZE, SIZE), (MEAN,) * 3, (STD,) * 3)


@register_model
def face_vit(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **kwargs: Any,
) -> VisionTransformer:
    """A ViT of 4 blocks, 128 channels and 4 heads on 48 x 48 photos in 8 x 8 patches, never pretrained."""
    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
    return VisionTransformer(**(shape | kwargs))


def face_model(num_classes: int, task_type: Task, top_k_ratio: float) -> DualAttentionModel:
    """DCAL in the paper's layout on `face_vit`."""
    return DualAttentionModel(
        "face_vit",
        num_classes,
        task_type,
        layout="paper",
        pretrained=False,
        img_size=SIZE,
        top_k_ratio=top_k_ratio,
        drop_path_rate=0.0,
    )


def train_fgvc(
    save_dir: Path, epochs: int = 220, holdout: int = 0, seed: int = 0, progress: bool = True
) -> dict[str, float]:
    """40 people, 6 photos each to train, 4 to test; the scores, with nearest neighbor on raw pixels.

    holdout: photos a person kept from training and scored instead of the test photos.
    """
    torch.manual_seed(seed)
    transform = face_transform("fgvc")
    splits = load_dataset(
        "orl-fgvc", train_transform=transform, test_transform=transform, holdout=holdout, seed=seed
    )
    train, test = InMemory(splits.train), InMemory(splits.validation if holdout else splits.test)
    model = face_model(40, "fgvc", 0.1)
    batches = training_loader(train, 16, workers=0, seed=seed)
    evaluate = partial(evaluate_fgvc, model, DataLoader(test, 80), progress=False)
    description = _describe(splits, "orl-fgvc", batch_size=16, holdout=holdout, seed=seed)
    history = _train(model, batches, evaluate, epochs, save_dir, description, progress)
    _pictures(model, test, history, save_dir)
    scores = {k: v for k, v in history[-1].items() if k.endswith(("top1", "top5"))}
    return scores | {"pixels_top1": nearest_neighbor(train, test)}


def train_reid(save_dir: Path, epochs: int = 60, seed: int = 0, progress: bool = True) -> dict[str, float]:
    """30 people to train; the photos of 10 others look for each other."""
    torch.manual_seed(seed)
    transform = face_transform("reid")
    splits = load_dataset("orl-reid", train_transform=transform, test_transform=transform)
    train, query, gallery = (InMemory(part) for part in (splits.train, splits.query, splits.gallery))
    model = face_model(30, "reid", 0.3)
    batches = training_loader(train, 40, per_identity=4, workers=0, seed=seed)
    sides = DataLoader(query, 100), DataLoader(gallery, 100)
    evaluate = partial(evaluate_reid, model, *sides, progress=False)
    description = _describe(splits, "orl-reid", batch_size=40, holdout=0, seed=seed)
    history = _train(model, batches, evaluate, epochs, save_dir, description, progress)
    _pictures(model, query, history, save_dir)
    return {k: v for k, v in history[-1].items() if k.startswith(("mAP", "rank", "mINP"))}


def _describe(splits: Splits, dataset: str, batch_size: int, holdout: int, seed: int) -> Description:
    return Description(
        task=splits.task,
        classes=splits.classes,
        size=(SIZE, SIZE),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        dataset=dataset,
        resize=SIZE,
        batch_size=batch_size,
        photos=4,
        holdout=holdout,
        seed=seed,
    )


def _train(
    model: DualAttentionModel,
    batches: DataLoader,
    evaluate: Callable[[], dict[str, float]],
    epochs: int,
    save_dir: Path,
    description: Description,
    progress: bool,
) -> list[dict[str, float]]:
    trainer = DualAttentionTrainer(
        model,
        batches,
        optimizer="adamw",
        lr=1e-3,
        warmup_epochs=min(10, epochs - 1),
        label_smoothing=0.1,
        augment=partial(whole_batch_affine, rotation=8, scale=0.08, shift=0.08, flip=False),
        evaluate=evaluate,
        evaluate_every=25,
        clip_grad=1.0,
        seed=description.seed,
        progress=progress,
        save_every=25,
        description=description.plain(),
    )
    return trainer.train(epochs, save_dir)


def nearest_neighbor(train: InMemory, test: InMemory) -> float:
    """Top-1 of the nearest training photo in raw pixels."""
    (x, labels), (y, truth) = _stack(train), _stack(test)
    nearest = torch.cdist(y.flatten(1), x.flatten(1)).argmin(1)
    votes = torch.nn.functional.one_hot(labels[nearest]).float()
    return topk_accuracy(votes, truth, ks=(1,))[1]


def table(fgvc: dict[str, float] | None, reid: dict[str, float] | None) -> str:
    """The demo's scores in per cent."""
    lines = []
    if fgvc is not None:
        lines.append("ORL faces, 40 classes: top-1 on 160 test photos")
        names = {"pixels": "nearest pixels", "sa": "SA", "glca": "GLCA", "sum": "SA + GLCA"}
        lines += [f"  {text:<16}{100 * fgvc[f'{name}_top1']:6.2f} %" for name, text in names.items()]
    if reid is not None:
        lines.append("ORL faces, 10 unseen people: retrieval among 100 photos")
        lines += [f"  {name:<16}{100 * reid[name]:6.2f} %" for name in ("mAP", "rank1")]
    return "\n".join(lines)


def next_commands(output: Path) -> str:
    """Commands that use the trained models, a line each."""
    splits = load_dataset("orl-fgvc")
    assert splits.test is not None
    photo = splits.test.records[0].path
    lines = [
        ["evaluate", f"--run={output / 'fgvc'}"],
        ["embed", f"--run={output / 'reid'}", "--part=gallery", f"--file={output / 'faces.npz'}"],
        ["visualize", f"--run={output / 'fgvc'}", f"--photos={photo}", f"--file={output / 'face.html'}"],
    ]
    return "\n".join(shlex.join(["dca-triton", *line]) for line in lines)


def _stack(dataset: InMemory) -> tuple[Tensor, Tensor]:
    return torch.stack([item["image"] for item in dataset.items]), torch.as_tensor(dataset.labels)


def _pictures(
    model: DualAttentionModel, photos: InMemory, history: list[dict[str, float]], save_dir: Path
) -> None:
    training_curves(history, save_dir / "training.png")
    chosen = [photos[i] for i in range(0, len(photos), max(1, len(photos) // 8))][:8]
    images = torch.stack([item["image"] for item in chosen])
    explained = explain(model.cpu(), images)  # training moved it to the GPU if there is one
    rollout_overlays(
        (images * STD + MEAN).clamp(0, 1),
        explained.rollout,
        explained.selected,
        model.backbone.grid_of(images),
        model.backbone.num_prefix_tokens,
        [f"{Path(item['path']).parent.name}/{Path(item['path']).stem}" for item in chosen],
        save_dir / "rollout.png",
    )
