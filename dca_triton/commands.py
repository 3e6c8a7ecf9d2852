"""What each command of `dca-triton` does. The first four take an experiment: the options of one config."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import Namespace

from . import demo as faces
from . import embedding
from .checkpoint import load_weights
from .evaluation import Metric, score_table
from .experiment import (
    build_model,
    evaluation_batches,
    load_splits,
    normalisation,
    scores,
    train_batches,
)
from .info import info as describe
from .model import DualAttentionModel
from .process import this_process
from .training import DualAttentionTrainer
from .visualisation import visualize as draw

Part = Literal["train", "validation", "test", "query", "gallery"]


def train(experiment: Namespace, resume: Literal["auto"] | Path | None = None) -> None:
    """Train a model; writes config.yaml, metrics.jsonl and checkpoints to `output`.

    Args:
        experiment: The options of the config.
        resume: "auto" goes on from the newest sound checkpoint in `output` if there is any; or that file.
    """
    torch.manual_seed(experiment.seed)
    splits = load_splits(experiment.data, experiment.model.backbone_name)
    model = build_model(splits, experiment.data, _model_options(experiment))
    if experiment.weights is not None:
        load_weights(model, experiment.weights)
    trainer = DualAttentionTrainer(
        model,
        train_batches(splits, experiment.data),
        pairs=experiment.pairs,
        evaluate=lambda: scores(model, splits, experiment.data, progress=experiment.trainer.progress),
        **experiment.trainer,
    )
    history = trainer.train(experiment.epochs, experiment.output, resume)
    if trainer.main:
        print(score_table(history[-1]))


def evaluate(experiment: Namespace, metric: Metric = "cosine", rerank: bool = False) -> None:
    """Score a trained model; prints a table and writes evaluation.json to `output`.

    Args:
        experiment: The options of the config.
        metric: Distance of Re-ID features.
        rerank: Rank Re-ID by k-reciprocal neighbours, which takes long on a large gallery.
    """
    model, splits = _trained(experiment)
    options: dict[str, Any] = {"metric": metric, "rerank": rerank} if splits.task == "reid" else {}
    found = scores(model, splits, experiment.data, **options)
    experiment.output.mkdir(parents=True, exist_ok=True)
    (experiment.output / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    print(score_table(found))


def embed(experiment: Namespace, file: Path, part: Part) -> None:
    """Write the features of a part of the dataset to a .npz or .safetensors file.

    Args:
        experiment: The options of the config.
        file: What to write; features, labels, cameras and paths.
        part: Which photos.
    """
    model, splits = _trained(experiment)
    dataset = getattr(splits, part)
    if dataset is None:
        present = [name for name in get_args(Part) if getattr(splits, name) is not None]
        raise ValueError(f"part is {part!r}; allowed for {experiment.data.name} are {', '.join(present)}")
    found = embedding.embed(model, evaluation_batches(dataset, experiment.data), file)
    print(f"{file}: {found.features.shape[0]} photos, {found.features.shape[1]} features each")


def visualize(
    experiment: Namespace, photos: list[Path] | Path, file: Path, distractors: list[Path] | Path | None = None
) -> None:
    """Draw photos with rollout, selected patches and predictions into one .png or .html file.

    Args:
        experiment: The options of the config.
        photos: What to draw: a file, or '[a.jpg, b.jpg]'.
        file: The picture, .png, or contact sheet, .html.
        distractors: One for each photo; shows how much of PWCA's attention leaks to it, block by block.
    """
    drawn = [photos] if isinstance(photos, Path) else photos
    others = [distractors] if isinstance(distractors, Path) else distractors
    model, splits = _trained(experiment)
    mean, std = normalisation(experiment.model.backbone_name)
    draw(model, drawn, file, others, splits.classes, mean, std)
    print(f"{file}: {len(drawn)} photos")


def demo(
    output: Path = Path("runs/demo"), fgvc_epochs: int = 220, reid_epochs: int = 60, seed: int = 0
) -> None:
    """Train a small DCAL model on the ORL faces, as categorisation and as re-identification.

    Args:
        output: Folder of the metrics, checkpoints and pictures.
        fgvc_epochs: Epochs of the categorisation run.
        reid_epochs: Epochs of the re-identification run.
        seed: Of initial weights, batches, pairs and augmentation.
    """
    fgvc = faces.train_fgvc(output / "fgvc", fgvc_epochs, seed=seed)
    reid = faces.train_reid(output / "reid", reid_epochs, seed=seed)
    print(faces.table(fgvc, reid))
    print(f"Metrics, checkpoints and pictures (training.png, rollout.png) are in {output}.")


def info() -> None:
    """Print versions, device, backend, the chosen kernel configurations and every reason for a fallback."""
    print(describe())


def tune(
    target: str | None = None,
    head_dims: tuple[int, ...] = (64,),
    dtypes: tuple[str, ...] = ("fp16", "bf16"),
    output: Path | None = None,
) -> None:
    """Measure the kernels' configurations on this GPU and write its table.

    Args:
        target: Instead of measuring, print the static model's ranking for a chip, e.g. sm_90; needs no GPU.
        head_dims: The heads' widths, of 16, 32, 48, 64, 80, 96 and 128.
        dtypes: Of fp16, bf16 and fp32.
        output: The table to write; by default the one that this device looks up.
    """
    try:
        from . import tuner
    except ModuleNotFoundError as error:
        raise RuntimeError(f"tuning needs Triton, which is not installed here ({error})") from error
    if target is not None:
        print(tuner.ranking_table(tuner.rank(target, head_dims=head_dims, dtypes=dtypes)))
        return
    if not torch.cuda.is_available():
        raise RuntimeError(
            "this machine has no GPU to tune on; --target sm_90 prints the static model's ranking"
        )
    print(tuner.table(tuner.tune(head_dims=head_dims, dtypes=dtypes, output=output)))


def _trained(experiment: Namespace) -> tuple[DualAttentionModel, Any]:
    splits = load_splits(experiment.data, experiment.model.backbone_name)
    options = _model_options(experiment) | {"pretrained": False}
    model = build_model(splits, experiment.data, options)
    rest = load_weights(model, experiment.weights or experiment.output / "checkpoint.pt")
    if average := rest.get("ema_state_dict"):  # what training's own scores were of
        load_weights(model, average)
    return model.to(this_process().device), splits


def _model_options(experiment: Namespace) -> dict[str, Any]:
    options = experiment.model.as_dict()
    return options | options.pop("timm")
