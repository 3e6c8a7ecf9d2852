"""From an experiment to its trainer: everything that a training run checks before it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..run_folder import RunFolder
from ..training import DualAttentionTrainer, PairSampler
from .experiment import (
    build_model,
    check_score,
    describe,
    load_splits,
    scored_part,
    scores,
    train_batches,
    warn_of_unknown,
)
from .options import Experiment
from .outputs import check_folder
from .trained import start_from

Resume = Literal["auto"] | Path | None


@dataclass(frozen=True)
class TrainingRun:
    """A run that can begin.

    Attributes:
        trainer: With the model, the batches and the evaluation.
        part: Which photos are scored.
        transferred: What `transfer` loaded, to be printed; None without it.
    """

    trainer: DualAttentionTrainer
    part: str
    transferred: str | None


def prepare(experiment: Experiment, resume: Resume = None) -> TrainingRun:
    """Load the photos, build the model with the seed's weights, and the trainer; nothing is written.

    Raises:
        FileNotFoundError, ValueError: Options that do not fit together, or no such photos or weights.
    """
    data, name = experiment.data, experiment.model["backbone_name"]
    check_folder(experiment.output)
    pairs = PairSampler(**experiment.pairs)
    torch.manual_seed(experiment.seed)
    splits = load_splits(data, name)
    best_by, branches = experiment.trainer.get("best_by"), experiment.model.get("branches")
    check_score("--trainer.best_by", best_by, splits.task, branches)
    model = build_model(splits, data, experiment.model)
    warn_of_unknown(model, splits.query, splits.gallery)
    source = experiment.transfer if resumed_folder(experiment.output, resume) is None else None
    transferred = start_from(model, source) if source else None
    trainer = DualAttentionTrainer(
        model,
        train_batches(splits, data),
        pairs=pairs,
        evaluate=lambda: scores(model, splits, data, progress=trainer.shows_progress),
        description=describe(splits, data, name).plain(),
        seed=experiment.seed,
        **experiment.trainer,
    )
    return TrainingRun(trainer, scored_part(splits), transferred)


def resumed_folder(output: Path, resume: Resume) -> Path | None:
    """The folder of the run that training goes on from; None for a new run."""
    if resume is None:
        return None
    if Path(resume) != Path("auto"):
        return Path(resume).parent
    return output if RunFolder(output).paths() else None
