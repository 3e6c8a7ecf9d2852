"""What each command of `dca-triton` does. Imports wait for the command, so that `--help` is quick."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from .options import Experiment, Selection

KINDS = ("fresh", "resampled", "ignored")  # weights that a transfer does not take as they are
Part = Literal["train", "validation", "test", "query", "gallery"]


def train(
    experiment: Experiment,
    resume: Literal["auto"] | Path | None = None,
    save_config: Callable[[], None] = lambda: None,
) -> None:
    """Train a model; writes config.yaml, metrics.jsonl and checkpoints to `output`.

    Args:
        experiment: The options of the config.
        resume: "auto" goes on from the newest sound checkpoint in `output` if there is any; or that file.
        save_config: Writes config.yaml; called when the run is known to be sound.
    """
    import torch

    from ..arguments import raise_faults, violations
    from ..evaluation import score_table
    from ..training import DualAttentionTrainer, PairSampler
    from .experiment import build_model, describe, load_splits, scores, train_batches
    from .options import VALUE_RULES

    data, name = experiment.data, experiment.model["backbone_name"]
    raise_faults(violations({"seed": experiment.seed}, {"seed": VALUE_RULES["seed"]}))
    pairs = PairSampler(**experiment.pairs)
    torch.manual_seed(experiment.seed)
    splits = load_splits(data, name)
    model = build_model(splits, data, experiment.model)
    transferred = _transfer(model, experiment, resume)
    trainer = DualAttentionTrainer(
        model,
        train_batches(splits, data),
        pairs=pairs,
        evaluate=lambda: scores(model, splits, data, progress=experiment.trainer.get("progress", True)),
        description=describe(splits, data, name).plain(),
        seed=experiment.seed,
        **experiment.trainer,
    )
    if trainer.main and transferred:
        print(transferred)
    history = trainer.train(experiment.epochs, experiment.output, resume, began=save_config)
    if trainer.main:
        print(score_table(history[-1]))


def evaluate(
    selection: Selection,
    metric: Literal["euclidean", "cosine"] = "cosine",
    rerank: bool = False,
    file: Path | None = None,
) -> None:
    """Score a trained model; prints a table and writes evaluation.json to the run's folder.

    Args:
        selection: The model and the photos.
        metric: Distance of Re-ID features.
        rerank: Rank Re-ID by k-reciprocal neighbours, which takes long on a large gallery.
        file: Where to write the scores as JSON instead.
    """
    import json

    from ..evaluation import score_table
    from ..files import atomic_write
    from .experiment import scores
    from .trained import load_trained

    output = file or (selection.run and selection.run / "evaluation.json")
    if output is not None:
        _check_file(output, (".json",))
    trained = load_trained(selection)
    splits = trained.splits()
    options: dict[str, Any] = {"metric": metric, "rerank": rerank} if splits.task == "reid" else {}
    found = scores(trained.model, splits, trained.data, **options)
    part = "validation" if splits.validation else "test" if splits.task == "fgvc" else "query and gallery"
    photos = {name: len(getattr(splits, name)) for name in part.split(" and ")}
    record = {"checkpoint": _named(trained.file, selection.run), "part": part, "photos": photos}
    if output is not None:
        with atomic_write(output, "w") as stream:
            stream.write(json.dumps(record | options | found, indent=2) + "\n")
    counted = ", ".join(f"{count} photos of {name}" for name, count in photos.items())
    print(f"{trained.file}: {counted}\n{score_table(found)}")


def embed(selection: Selection, file: Path, part: Part | None = None, photos: Path | None = None) -> None:
    """Write the features of photos to a .npz or .safetensors file.

    Args:
        selection: The model and the dataset.
        file: What to write; features, labels, cameras and paths.
        part: Which photos of the dataset.
        photos: Instead of a part, any folder of photos, with all folders in it.
    """
    from ..data import photos_in
    from ..evaluation import embeddings
    from .experiment import evaluation_batches
    from .trained import load_trained

    if (part is None) == (photos is None):
        raise ValueError(f"either part or photos must be given, got {'none' if part is None else 'both'}")
    _check_file(file, embeddings.SUFFIXES)
    trained = load_trained(selection)
    dataset = trained.part(part) if part else photos_in(photos or "", trained.transform())
    found = embeddings.embed(trained.model, evaluation_batches(dataset, trained.data), file)
    print(f"{file}: {found.features.shape[0]} photos, {found.features.shape[1]} features each")


def visualize(
    selection: Selection,
    photos: list[Path] | Path,
    file: Path,
    distractors: list[Path] | Path | None = None,
) -> None:
    """Draw photos with rollout, selected patches and predictions into one .png or .html file.

    Args:
        selection: The model.
        photos: What to draw: a file, or '[a.jpg, b.jpg]'.
        file: The picture, .png, or contact sheet, .html.
        distractors: One for each photo; shows how much of PWCA's attention leaks to it, block by block.
    """
    from ..visualization import visualize as draw
    from .trained import load_trained

    drawn = [photos] if isinstance(photos, Path) else photos
    others = [distractors] if isinstance(distractors, Path) else distractors
    _check_file(file, (".png", ".html"))
    trained = load_trained(selection)
    known = trained.description
    draw(trained.model, drawn, file, others, known.classes, known.mean, known.std)
    print(f"{file}: {len(drawn)} photos")


def export(selection: Selection, run: Path, folder: Path) -> None:
    """Write a trained model as a folder that `DualAttentionModel.from_pretrained` reads.

    Args:
        selection: The options for a run whose checkpoint does not describe itself.
        run: The folder of a training run.
        folder: What to write: config.json, model.safetensors and a card, which is kept if it exists.
    """
    import os
    import tempfile

    from .trained import load_trained

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, got the file {str(folder)!r}")
    trained = load_trained(selection)
    trained.model.description = trained.description
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        trained.model.save_pretrained(temporary)
        folder.mkdir(exist_ok=True)
        for written in sorted(Path(temporary).iterdir(), key=lambda path: path.suffix == ".json"):
            if written.name != "README.md" or not (folder / written.name).exists():
                os.replace(written, folder / written.name)
    print(f"{folder}: {trained.file} for DualAttentionModel.from_pretrained")


def demo(
    output: Path = Path("runs/demo"), fgvc_epochs: int = 220, reid_epochs: int = 60, seed: int = 0
) -> None:
    """Train a small DCAL model on the ORL faces, as categorization and as re-identification.

    Args:
        output: Folder of the metrics, checkpoints and pictures.
        fgvc_epochs: Epochs of the categorization run, at least 1.
        reid_epochs: Epochs of the re-identification run, at least 1.
        seed: Of initial weights, batches, pairs and augmentation.
    """
    from ..arguments import integer, raise_faults, violations
    from . import demo as faces
    from .options import VALUE_RULES

    rules = {"fgvc_epochs": integer(1), "reid_epochs": integer(1), "seed": VALUE_RULES["seed"]}
    given = {"fgvc_epochs": fgvc_epochs, "reid_epochs": reid_epochs, "seed": seed}
    raise_faults(violations(given, rules))
    fgvc = faces.train_fgvc(output / "fgvc", fgvc_epochs, seed=seed)
    reid = faces.train_reid(output / "reid", reid_epochs, seed=seed)
    print(faces.table(fgvc, reid))
    print(f"Metrics, checkpoints and pictures (training.png, rollout.png) are in {output}. Go on with:")
    print(faces.next_commands(output))


def info() -> None:
    """Print versions, device, backend, the chosen kernel configurations and every reason for a fallback."""
    from .info import info as describe

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
    import torch

    try:
        from ..tuning import tuner
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


def _transfer(model: Any, experiment: Experiment, resume: Literal["auto"] | Path | None) -> str:
    """Load what fits of `experiment.transfer`, unless the run goes on from its own checkpoint."""
    from ..checkpoint import load_weights
    from ..run_folder import RunFolder
    from .trained import newest_checkpoint

    source, output = experiment.transfer, experiment.output
    resumes = resume is not None and (Path(resume) != Path("auto") or bool(RunFolder(output).paths()))
    if source is None or resumes:
        return ""
    file = newest_checkpoint(source)[0] if source.is_dir() else source
    found = load_weights(model, file, transfer=True)
    lists = [f"{kind} ({len(found[kind])}): {', '.join(found[kind])}" for kind in KINDS if found[kind]]
    return "\n".join([f"Training starts from the weights of {file}", *(f"  {line}" for line in lists)])


def _check_file(file: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written before any work is done."""
    if file.suffix not in suffixes:
        raise ValueError(f"file must end in {' or '.join(suffixes)}, got {str(file)!r}")
    if not file.parent.is_dir():
        raise ValueError(f"file must be in a folder that exists, got {str(file)!r}")
    if file.is_dir():
        raise ValueError(f"file must be a file, got the folder {str(file)!r}")


def _named(file: Path, run: Path | None) -> str:
    """A path as a record holds it: relative to the run if it is in it, so that the run may move."""
    absolute = file.absolute()
    return str(
        absolute.relative_to(run.absolute()) if run and absolute.is_relative_to(run.absolute()) else absolute
    )
