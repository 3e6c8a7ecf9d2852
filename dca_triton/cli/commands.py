"""What each command of `dca-triton` does. Imports wait for the command, so that `--help` is quick."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..arguments import raise_faults
from ..branches import Metric
from ..files import atomic_write, path_faults
from .options import Experiment, Selection
from .recipe import flat
from .reproduction import Reproduction, reproduction_in

Part = Literal["train", "validation", "test", "query", "gallery"]
STREAM = Path("-")


def train(
    experiment: Experiment,
    resume: Literal["auto"] | Path | None = None,
    save_config: Callable[[], None] = lambda: None,
    reproduction: Reproduction | None = None,
) -> None:
    """Train a model and write config.yaml, metrics.jsonl and checkpoints to `output`.

    Args:
        experiment: The options of the config.
        resume: "auto" continues from the newest undamaged checkpoint in `output`, if there is one; a path
            continues from this file.
        save_config: Writes config.yaml; called when the run is known to be sound.
        reproduction: The recipe whose expected scores are printed beside the run's.
    """
    from ..evaluation import score_table
    from .training_run import prepare

    run = prepare(experiment, resume)
    if run.trainer.main and run.transferred:
        print(run.transferred)
    history = run.trainer.train(experiment.epochs, experiment.output, resume, began=save_config)
    if run.trainer.main:
        print(score_table(history[-1], part=run.part))
        if reproduction is not None:
            print(reproduction.table(history[-1]))


def evaluate(
    selection: Selection,
    metric: Metric | None = None,
    rerank: bool | None = None,
    flip: bool = False,
    expand: int | None = None,
    alpha: float | None = None,
    file: Path | None = None,
) -> None:
    """Score a trained model, print a table and write evaluation.json to the run's folder.

    Args:
        selection: The model and the photos.
        metric: Distance of Re-ID features; cosine by default.
        rerank: Rank Re-ID by k-reciprocal neighbors, which is slow on a large gallery; false by default.
        flip: Average over each photo and its mirror image.
        expand: Before ranking, average each Re-ID query with this many nearest gallery photos (query
            expansion).
        alpha: Exponent of the weights of these photos, >= 0; 3 by default. With 0, all weights are equal.
        file: The JSON file for the scores; by default evaluation.json in the run's folder.
    """
    import json

    from ..evaluation import score_table
    from ..run_folder import EVALUATION
    from .experiment import (
        check_expansion,
        reid_options,
        scored_part,
        scored_parts,
        scores,
        warn_of_unknown,
    )
    from .outputs import counted, named
    from .trained import load_trained

    if file is not None:
        raise_faults(path_faults("--file", file, (".json",)))
    check_expansion(expand, alpha)
    trained = load_trained(selection)
    task = trained.description.task
    asked = reid_options(task, metric=metric, rerank=rerank, expand=expand, alpha=alpha)
    output = file or (selection.run and selection.run / EVALUATION)
    if file is None and output is not None:
        raise_faults(path_faults("--file", output, (".json",)))
    splits = trained.splits()
    warn_of_unknown(trained.model, splits.query, splits.gallery)
    defaults: dict[str, Any] = {"metric": "cosine", "rerank": False} if splits.task == "reid" else {}
    options = defaults | asked | ({"flip": True} if flip else {})
    found = scores(trained.model, splits, trained.data, **options)
    photos = {name: len(getattr(splits, name)) for name in scored_parts(splits)}
    record = {
        "checkpoint": named(trained.file, selection.run),
        "dataset": splits.dataset,
        "part": " and ".join(photos),
        "photos": photos,
    }
    if changed := selection.changed():
        record["changed"] = changed
    if output is not None:
        with atomic_write(output, "w") as stream:
            stream.write(json.dumps(record | options | found, indent=2, default=str) + "\n")
    numbers = ", ".join(f"{counted(count, 'photo')} of {name}" for name, count in photos.items())
    print(f"{trained.file}: {numbers}\n{score_table(found, part=scored_part(splits))}")
    if (reproduction := reproduction_in(selection.run)) is not None:
        others = {name: value for name, value in options.items() if value != defaults.get(name)}
        others |= {} if selection.weights is None else {"weights": selection.weights}
        print(replace(reproduction, scored_with=flat(changed) | others).table(found))


def embed(
    selection: Selection,
    file: Path,
    part: Part | None = None,
    photos: Path | None = None,
    flip: bool = False,
) -> None:
    """Write the features of photos to a .npz or .safetensors file, or those of a stream as lines of JSON.

    Args:
        selection: The model and the dataset.
        file: The .npz or .safetensors file for features, labels, cameras and paths. With --photos -, give -
            for standard output, which gets a line of JSON for each photo as soon as it is computed.
        part: The part of the dataset to embed.
        photos: Instead of a part, any folder of photos, with all its subfolders; or -, which reads names of
            photos from standard input, one per line. A photo that cannot be read does not end the stream.
        flip: Average the features of each photo and its mirror image.
    """
    from ..data import photos_in
    from ..evaluation import embeddings, flip_averaged
    from .experiment import evaluation_batches, warn_of_unknown
    from .outputs import counted
    from .trained import load_trained

    if (part is None) == (photos is None):
        raise ValueError(f"either --part or --photos must be given, got {'none' if part is None else 'both'}")
    if (photos == STREAM) != (file == STREAM):
        raise ValueError(f"--file must be - with --photos -, and only then, got {str(file)!r}")
    if photos == STREAM:
        _embed_stream(selection, flip)
        return
    if photos is not None and not photos.is_dir():
        raise ValueError(f"--photos must be a folder, got {str(photos)!r}")
    raise_faults(path_faults("--file", file, embeddings.SUFFIXES))
    trained = load_trained(selection)
    dataset = trained.part(part) if part else photos_in(photos or "", trained.transform())
    if photos is not None:
        warn_of_unknown(trained.model, dataset)
    model = flip_averaged(trained.model) if flip else trained.model
    found = embeddings.embed(model, evaluation_batches(dataset, trained.data), file)
    count, width = found.features.shape
    print(f"{file}: {counted(count, 'photo')}, {counted(width, 'feature')} each")


def _embed_stream(selection: Selection, flip: bool) -> None:
    from ..evaluation import flip_averaged
    from .stream import embed_stream
    from .trained import load_trained

    with contextlib.redirect_stdout(sys.stderr):  # standard output holds JSON alone
        trained = load_trained(selection)
    model = flip_averaged(trained.model) if flip else trained.model
    failed, named = embed_stream(model, trained.transform(), sys.stdin.buffer, trained.data.batch_size)
    if failed:
        raise ValueError(f"--photos must name photos that can be read, got {failed} of {named} that cannot")


def visualize(
    selection: Selection,
    photos: list[Path] | Path,
    file: Path,
    distractors: list[Path] | Path | None = None,
) -> None:
    """Draw photos with rollout, selected patches and predictions into one .png or .html file.

    A model with embeddings of cameras treats the photos as photos without a camera.

    Args:
        selection: The model.
        photos: The photos to draw: a file, or '[a.jpg, b.jpg]'.
        file: The .png or .html file to write.
        distractors: One photo for each of `photos`; also draws how much of PWCA's attention falls on it in
            each block.
    """
    from ..visualization import visualize as draw
    from ..visualization.output import SUFFIXES
    from .experiment import center_of
    from .outputs import counted
    from .trained import load_trained

    drawn = [photos] if isinstance(photos, Path) else photos
    others = [distractors] if isinstance(distractors, Path) else distractors
    raise_faults(path_faults("--file", file, SUFFIXES))
    trained = load_trained(selection)
    known = trained.description
    resize = center_of(trained.data)
    draw(trained.model, drawn, file, others, known.classes, known.mean, known.std, resize=resize)
    print(f"{file}: {counted(len(drawn), 'photo')}")


def demo(
    output: Path = Path("runs/demo"), fgvc_epochs: int = 220, reid_epochs: int = 60, seed: int = 0
) -> None:
    """Train two small DCAL models on the ORL faces, for categorization and for re-identification.

    Args:
        output: The folder for metrics, checkpoints and pictures.
        fgvc_epochs: Epochs of the run for categorization, >= 1.
        reid_epochs: Epochs of the run for re-identification, >= 1.
        seed: Seeds the initial weights, batches, pairs and augmentation.
    """
    from ..arguments import integer, violations
    from . import demo as faces
    from .options import VALUE_RULES
    from .outputs import check_folder

    rules = {"--fgvc_epochs": integer(1), "--reid_epochs": integer(1), "--seed": VALUE_RULES["seed"]}
    given = {"--fgvc_epochs": fgvc_epochs, "--reid_epochs": reid_epochs, "--seed": seed}
    raise_faults(violations(given, rules))
    check_folder(output)
    fgvc = faces.train_fgvc(output / "fgvc", fgvc_epochs, seed=seed)
    reid = faces.train_reid(output / "reid", reid_epochs, seed=seed)
    print(faces.table(fgvc, reid))
    print(f"Metrics, checkpoints and pictures (training.png, rollout.png) are in {output}. Go on with:")
    print(faces.next_commands(output))


def info(backbone_name: str | None = None, img_size: int | tuple[int, int] = 224) -> None:
    """Print versions, device, backend, the chosen kernel configurations and every reason for a fallback.

    Args:
        backbone_name: A timm model; also print its heads and tokens in layout="paper", and what they run on.
        img_size: Its image size in pixels, a side or (height, width).
    """
    from .info import info as describe

    print(describe(backbone_name, img_size))


def tune(
    target: str | None = None,
    head_dims: tuple[int, ...] = (64,),
    dtypes: tuple[str, ...] = ("fp16", "bf16"),
    output: Path | None = None,
) -> None:
    """Measure kernel configurations on this GPU and write the fastest ones to its table.

    Args:
        target: Instead of measuring, print the cost model's ranking for a chip, e.g. sm_90; needs no GPU.
        head_dims: Widths of heads, any of 16, 32, 48, 64, 72, 76, 80, 88, 96, 104, 112 and 128.
        dtypes: Any of fp16, bf16 and fp32.
        output: The table to write; by default the one that launches on this GPU read.
    """
    import torch

    try:
        from ..tuning import tuner
    except ModuleNotFoundError as error:
        raise RuntimeError(f"tune must run where Triton is installed, got no Triton ({error})") from error
    if target is not None:
        print(tuner.ranking_table(tuner.rank(target, head_dims=head_dims, dtypes=dtypes)))
        return
    if not torch.cuda.is_available():
        raise RuntimeError(
            "tune must run on a machine with a GPU, got none (--target sm_90 prints the static model's "
            "ranking)"
        )
    print(tuner.table(tuner.tune(head_dims=head_dims, dtypes=dtypes, output=output)))
