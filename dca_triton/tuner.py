"""Choosing launch configurations: measured on the GPU at hand (`tune`), or ranked by the static model
(`rank`)."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch
import triton.testing
from tqdm import tqdm
from triton.runtime.errors import OutOfResources

from . import tuning
from .static.assess import Assessment, assess_all
from .static.chips import CHIPS
from .static.problems import Job, problem

Ranking = dict[tuple[tuning.Key, int], list[Assessment]]

MEASURED = 6  # candidates per choice that are timed, the model's best

HALF_TILES = ((128, 64), (128, 32), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
FULL_TILES = ((64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (16, 32), (16, 16))  # fp32 fills registers


@dataclass(frozen=True)
class Choice:
    """A configuration chosen for a length. milliseconds: the median of its launches; default: of the table's
    choice."""

    key: tuning.Key
    n: int
    config: tuning.Config
    milliseconds: float
    default: float


def keys(ops: Iterable[str], head_dims: Iterable[int], dtypes: Iterable[str]) -> list[tuning.Key]:
    """Every direction of the operations for every head dimension and dtype; raises ValueError for unknown
    names."""
    ops, head_dims, dtypes = list(ops), list(head_dims), list(dtypes)
    faults = [
        f"ops has {op!r}; allowed are {', '.join(tuning.DIRECTIONS)}"
        for op in ops
        if op not in tuning.DIRECTIONS
    ]
    faults += [
        f"head_dims has {d}; allowed are {tuning.HEAD_DIMS}" for d in head_dims if d not in tuning.HEAD_DIMS
    ]
    faults += [
        f"dtypes has {d!r}; allowed are {', '.join(tuning.DTYPES)}" for d in dtypes if d not in tuning.DTYPES
    ]
    if faults:
        raise ValueError("; ".join(faults))
    return [
        tuning.Key(op, direction, head_dim, dtype)
        for op in ops
        for direction in tuning.DIRECTIONS[op]
        for head_dim in head_dims
        for dtype in dtypes
    ]


def candidates(dtype: str) -> list[tuning.Config]:
    """The configurations that are tried for a dtype, before anything is known of the kernel and the chip."""
    tiles, stages = (FULL_TILES, (1,)) if dtype == "fp32" else (HALF_TILES, (1, 2))
    return [tuning.Config(*tile, *rest) for tile, *rest in itertools.product(tiles, (4, 8), stages)]


def rank(
    target: str,
    ops: Sequence[str] = tuple(tuning.DIRECTIONS),
    head_dims: Sequence[int] = (64,),
    dtypes: Sequence[str] = ("fp16",),
    lengths: Sequence[int] = (197,),
    progress: bool = True,
) -> Ranking:
    """What the static model thinks of the candidates on target, an architecture such as `sm_90`; needs no
    GPU.

    For each choice the candidates that fit and do not spill, best first. Raises ValueError for an unknown
    target or name, and RuntimeError where not one candidate of a choice remains.
    """
    if target not in CHIPS:
        raise ValueError(f"target is {target!r}; allowed are {', '.join(CHIPS)}")
    wanted = list(itertools.product(keys(ops, head_dims, dtypes), lengths))
    ranking = _ranked(target, wanted, progress)
    if missing := [f"{key} with {n} tokens" for (key, n), found in ranking.items() if not found]:
        raise RuntimeError(
            f"no candidate compiles, fits and keeps from spilling on {target} for {'; '.join(missing)}"
        )
    return ranking


def _ranked(target: str, wanted: Sequence[tuple[tuning.Key, int]], progress: bool) -> Ranking:
    jobs = [Job(key, n, target, config) for key, n in wanted for config in candidates(key.dtype)]
    ranking: Ranking = {choice: [] for choice in wanted}
    for job, result in tqdm(assess_all(jobs), "compile", len(jobs), disable=not progress):
        if isinstance(result, Assessment) and math.isfinite(result.clocks):
            ranking[job.key, job.n].append(result)
    for found in ranking.values():
        found.sort(key=lambda assessment: assessment.clocks)
    return ranking


def tune(
    device: torch.device | None = None,
    ops: Sequence[str] = tuple(tuning.DIRECTIONS),
    head_dims: Sequence[int] = (64,),
    dtypes: Sequence[str] = ("fp16", "bf16"),
    lengths: Sequence[int] = (197, 785),
    output: Path | None = None,
    progress: bool = True,
) -> list[Choice]:
    """Time the model's best candidates on a GPU and write the fastest, for each operation, dtype and length.

    device: a CUDA or ROCm device, by default the current one. output: the file, by default the one that the
    device is looked up by. An interrupted run is continued: what it finished is in `<output>.unfinished`.
    Raises RuntimeError without a GPU, and OSError where output cannot be written, before anything is timed.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU to tune on; `rank` (--target) shows the static model's choice")
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    gpu = tuning.gpu_of(device)
    output = tuning.CONFIGS / f"{gpu.name}.json" if output is None else output
    unfinished = output.with_suffix(".unfinished")
    _check_writable(output)
    done = tuning.read(unfinished) if unfinished.exists() else {}
    wanted = itertools.product(keys(ops, head_dims, dtypes), lengths)
    ranking = _ranked(
        tuning.nearest_arch(gpu.arch), [(key, n) for key, n in wanted if n not in done.get(key, {})], progress
    )
    choices = []
    for (key, n), found in tqdm(ranking.items(), "measure", disable=not progress):
        with torch.cuda.device(device):  # events are recorded on the current device
            choice = _fastest(key, n, device, [assessment.job.config for assessment in found[:MEASURED]])
        choices.append(choice)
        done.setdefault(key, {})[n] = choice.config
        tuning.write(unfinished, f"measured on {gpu.name}", done)
    known = tuning.read(output) if output.exists() else {}
    for key, by_length in done.items():
        known[key] = known.get(key, {}) | by_length
    tuning.write(output, f"measured on {gpu.name}", known)
    unfinished.unlink(missing_ok=True)
    tuning.forget()
    return choices


def _check_writable(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OSError(f"output is {output}; allowed is a file that can be written ({error})") from error


def _fastest(key: tuning.Key, n: int, device: torch.device, ranked: list[tuning.Config]) -> Choice:
    dtype = tuning.DTYPES[key.dtype]
    default = {
        (key.op, direction): tuning.choose(key.op, direction, key.head_dim, dtype, n, device)
        for direction in tuning.DIRECTIONS[key.op]
    }
    launch = problem(key, n, device)
    times = {}
    for config in dict.fromkeys([default[key.op, key.direction], *ranked]):
        with tuning.forced(default | {(key.op, key.direction): config}):
            try:
                times[config] = float(triton.testing.do_bench(launch, return_mode="median"))
            except OutOfResources:  # a chip with less than the one that the model knows
                times[config] = math.inf
    best = min(times, key=times.__getitem__)
    return Choice(key, n, best, times[best], times[default[key.op, key.direction]])


def table(choices: Sequence[Choice]) -> str:
    """The measured choices as text, a line each; the time of dkdv or dq is that of the whole backward
    pass."""
    lines = [f"{HEAD} {'ms':>8} {'before':>8}"]
    for c in choices:
        lines.append(f"{_row(c.key, c.n, c.config)} {c.milliseconds:>8.4f} {c.default:>8.4f}")
    return "\n".join(lines)


def ranking_table(ranking: Ranking, best: int = 3) -> str:
    """The best few of each ranking as text: predicted clocks, instructions per score, registers,
    residents."""
    lines = [f"{HEAD} {'clocks':>9} {'ins/score':>9} {'registers':>9} {'resident':>8}"]
    for (key, n), found in ranking.items():
        for a in found[:best]:
            figures = f"{a.clocks:>9.0f} {a.per_score:>9.2f} {a.code.registers:>9} {a.resident:>8}"
            lines.append(f"{_row(key, n, a.job.config)} {figures}")
    return "\n".join(lines)


HEAD = f"{'operation':<16} {'direction':<9} {'D':>4} {'dtype':<5} {'N':>5}  {'m/n/warps/stages':<17}"


def _row(key: tuning.Key, n: int, config: tuning.Config) -> str:
    return f"{key.op:<16} {key.direction:<9} {key.head_dim:>4} {key.dtype:<5} {n:>5}  {spell(config):<17}"


def spell(config: tuning.Config) -> str:
    """A configuration in short: block_m/block_n/num_warps/num_stages."""
    return f"{config.block_m}/{config.block_n}/{config.num_warps}/{config.num_stages}"
