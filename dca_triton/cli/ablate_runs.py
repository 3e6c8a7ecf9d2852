"""The runs of an ablation: checked before the first, each trained once, their steps timed after the last."""

import gc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import yaml

from ..process import this_process
from ..progress import progress
from ..run_folder import RunFolder
from ..training.scoring import has_scores
from ..training.step_time import step_times
from .ablate_plan import Overrides, PlannedRun
from .ablate_table import Result
from .experiment import check_score
from .outputs import check_folder
from .training_run import prepare

PREDICTION = {"fgvc": "sum_top1", "reid": "mAP"}  # what a user of the model would take; without GLCA SA's
Scores = dict[str, float]
Runs = Sequence[PlannedRun]
Key = tuple[str, int]  # variant and seed


@dataclass(frozen=True)
class Checked:
    """What is known before the first run.

    Attributes:
        part: Which photos are scored.
        score: The score that counts.
        done: The scores of the runs that are done, by variant and seed.
    """

    part: str
    score: str
    done: dict[Key, Scores]


def check(runs: Runs, score: str | None) -> Checked:
    """Find every reason why the runs cannot be as planned; nothing is written.

    Each variant's model and trainer are built once.

    Raises:
        ValueError: Other options in a run's folder, options that do not fit, no photos or weights, or an
            unknown score.
    """
    state = this_process()
    if state.num_processes > 1:
        raise ValueError(f"ablate must run in one process, got a launch of {state.num_processes}")
    for run in runs:
        check_folder(run.experiment.output)
    for run in runs:
        if changes := run.changes():
            raise ValueError(
                f"--output must be a new folder or hold the same ablation, got "
                f"{str(run.experiment.output)!r}, where {'; '.join(changes)}"
            )
    for run in firsts(runs):
        try:
            ready = prepare(run.experiment)
            ready.trainer.check_epochs(run.experiment.epochs)
            model = ready.trainer.model
            check_score("--score", score, model.task_type, model.branches)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            raise ValueError(f"variant {run.variant!r}: {error}") from error
        if ready.transferred:
            print(f"{run.variant}: {ready.transferred}")
        part, task = ready.part, model.task_type
        del ready, model
        gc.collect()  # a trainer holds itself, and so the memory of its model
    deciding = score or PREDICTION[task]
    done = {(run.variant, run.seed): scores for run in runs if (scores := finished(run)) is not None}
    return Checked(part, deciding, done)


def firsts(runs: Runs) -> list[PlannedRun]:
    """The first run of each variant."""
    return list({run.variant: run for run in reversed(runs)}.values())[::-1]


def finished(run: PlannedRun) -> Scores | None:
    """The scores after the last epoch, if the run is done.

    Its checkpoint says so: metrics.jsonl is written before the last checkpoint, so a kill may come between.
    """
    found = RunFolder(run.experiment.output).find("auto")
    if found is None:
        return None
    history = found[1].get("history") or [{}]
    done = len(history) == run.experiment.epochs and not found[1].get("step")
    return history[-1] if done and has_scores(history[-1]) else None


def train(runs: Runs, done: dict[Key, Scores]) -> dict[Key, str]:
    """Train the runs that are not done, and add their scores to `done`; an unfinished run is resumed.

    Returns:
        The reason of each run that failed, by variant and seed. A loss that is not finite, no memory or an
        unreadable photo ends one run; a full disk or Ctrl-C ends all.
    """
    failures = {}
    left = [run for run in runs if (run.variant, run.seed) not in done]
    with progress(desc="ablate", total=len(runs), initial=len(runs) - len(left), unit="run") as bar:
        for run in left:
            key = run.variant, run.seed
            bar.set_postfix_str(f"{run.variant}, seed {run.seed}")
            try:
                done[key] = _train(run)
            except (ValueError, RuntimeError) as error:
                failures[key] = " ".join(str(error).split())
                warnings.warn(f"{run.variant}, seed {run.seed} failed: {error}", stacklevel=1)
            gc.collect()  # a trainer holds itself, and so the memory of its model
            bar.update()
    return failures


def _train(run: PlannedRun) -> Scores:
    experiment = run.experiment
    trainer = prepare(experiment, "auto").trainer
    return trainer.train(experiment.epochs, experiment.output, "auto", began=run.save_config)[-1]


@dataclass(frozen=True)
class Timing:
    """What was timed, and how long it took.

    Attributes:
        text: What was timed, in words; or why nothing was.
        seconds: Of each step, by variant.
    """

    text: str
    seconds: Mapping[str, list[float]]


def timing(runs: Runs, turns: int) -> Timing:
    """Time the training step of all variants by turns, on their own device, batch size and precision."""
    threads = torch.get_num_threads()
    where = f"the CPU with {threads} thread{'s' * (threads > 1)}"
    sizes = dict.fromkeys(run.experiment.data.batch_size for run in firsts(runs))
    try:
        trainers = {run.variant: prepare(run.experiment).trainer for run in firsts(runs)}
        device = next(iter(trainers.values())).device
        if device.type == "cuda":
            where = torch.cuda.get_device_name(device)
        text = (
            f"median of {turns} training steps by turns (augmentation, forward, backward, optimizer; no "
            f"decoding of photos), batch size {' or '.join(map(str, sizes))}, on {where}"
        )
        return Timing(text, step_times(trainers, turns))
    except RuntimeError as error:  # all models at once need more memory than one; the scores still count
        warnings.warn(f"the training steps could not be timed: {error}", stacklevel=1)
        return Timing(f"not timed: {error}", {})


def results(
    runs: Runs,
    done: Mapping[Key, Scores],
    failures: Mapping[Key, str],
    overrides: Mapping[str, Overrides],
    timed: Timing,
) -> dict[str, Result]:
    """Put together what is known of each variant."""
    found = {}
    for run in firsts(runs):
        name = run.variant
        scores = {seed: each for (variant, seed), each in sorted(done.items()) if variant == name}
        found[name] = Result(
            overrides=overrides[name],
            config=yaml.safe_load(run.config),
            all_scores=scores,
            failures={seed: reason for (variant, seed), reason in failures.items() if variant == name},
            seconds=timed.seconds.get(name, []),
        )
    return found
