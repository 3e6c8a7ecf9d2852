"""Choose launch configurations: time them on a GPU (`tune`), or rank them with the cost model (`rank`)."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton.testing
from tqdm import tqdm
from triton.runtime.errors import OutOfResources

from ..arguments import Rule, choice, integer, raise_faults, violations
from ..ops import launch_table
from ..progress import progress as progress_bar
from . import implementations
from .measurements import Measurements
from .meter.chips import CHIPS
from .meter.launches import problem
from .ranking import Launch, Ranking, candidates, describe, order

TIMED_CANDIDATES = 6  # how many candidates are timed per choice: the cost model's best


def several(rule: Rule) -> Rule:
    """A non-empty list or tuple of values that the rule accepts."""
    fits, words = rule
    return (
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(fits, v)),
        f"a non-empty list in which each item is {words}",
    )


def head_dims_among(sizes: tuple[int, ...]) -> Rule:
    """A non-empty list of some of the head dimensions."""
    return several((lambda v: type(v) is int and v in sizes, f"one of {sizes}"))


RULES = {
    "target": choice(*CHIPS),
    "device": (lambda v: isinstance(v, torch.device) and v.type == "cuda", "a CUDA or ROCm device"),
    "ops": several(choice(*launch_table.DIRECTIONS)),
    "head_dims": head_dims_among(launch_table.HEAD_DIMS),
    "dtypes": several(choice(*launch_table.DTYPES)),
    "lengths": several(integer(1)),
}


@dataclass(frozen=True)
class Choice:
    """The fastest configuration for a length.

    milliseconds: its median time. default_milliseconds: the median time of the configuration that was used
    before.
    """

    key: launch_table.Key
    n: int
    config: launch_table.Config
    milliseconds: float
    default_milliseconds: float


def rank(
    target: str,
    ops: Sequence[str] = tuple(launch_table.DIRECTIONS),
    head_dims: Sequence[int] = (64,),
    dtypes: Sequence[str] = ("fp16",),
    lengths: Sequence[int] = (197,),
    progress: bool = True,
) -> Ranking:
    """Rank launch candidates for an architecture with the static cost model. No GPU is needed.

    Args:
        target: The architecture, e.g. `sm_90`.
        ops: Operations.
        head_dims: Head dimensions.
        dtypes: Of `fp16`, `bf16` and `fp32`.
        lengths: Numbers of tokens.
        progress: Show a progress bar.

    Returns:
        For each kernel and length, the candidates that fit and do not spill, best first.

    Raises:
        ValueError: For an unknown target or name.
        RuntimeError: If no candidate is left for a kernel and length.
    """
    arguments = {"target": target, "ops": ops, "head_dims": head_dims, "dtypes": dtypes, "lengths": lengths}
    _check(arguments)
    launches = _launches(ops, head_dims, dtypes, lengths)
    ranking = order(target, {launch: candidates(launch[0].dtype, target) for launch in launches}, progress)
    if missing := [describe(key, n) for (key, n), ranked in ranking.items() if not ranked]:
        raise RuntimeError(f"no candidate fits {target} without spilling for {'; '.join(missing)}")
    return ranking


def tune(
    device: torch.device | None = None,
    ops: Sequence[str] = tuple(launch_table.DIRECTIONS),
    head_dims: Sequence[int] = (64,),
    dtypes: Sequence[str] = ("fp16", "bf16"),
    lengths: Sequence[int] = (197, 785),
    output: Path | None = None,
    progress: bool = True,
    deadline: float = math.inf,
) -> list[Choice]:
    """Time launch candidates on a GPU and write the fastest of each kernel and length to the GPU's table.

    The cost model picks the candidates to time. Then the kernels are timed beside PyTorch's fused attentions
    and, where it is installed, flash-attn-4; `auto` takes one of them where it is faster by more than 3 %. A
    run that was interrupted, or that ended at its deadline, can be repeated: it continues from
    `<output>.unfinished`.

    Args:
        device: A CUDA or ROCm device; by default the current one.
        ops: Operations.
        head_dims: Head dimensions.
        dtypes: Of `fp16`, `bf16` and `fp32`.
        lengths: Numbers of tokens.
        output: The table to write, or to add to; by default the one that launches on this GPU read.
        progress: Show progress bars, and the path of the table.
        deadline: When to stop, on the clock of `time.monotonic`. The table then holds what was measured.

    Returns:
        The choices that this call measured.

    Raises:
        ValueError: For an unknown name, for a head dimension that the kernels do not take on this GPU, or if
            output is not a table of this GPU.
        RuntimeError: If there is no GPU, or no candidate runs on it.
        OSError: If output cannot be written. All but the last are raised before anything is timed.
    """
    arguments = {"ops": ops, "head_dims": head_dims, "dtypes": dtypes, "lengths": lengths}
    _check(arguments if device is None else {"device": device, **arguments})
    if not torch.cuda.is_available():
        raise RuntimeError(
            "device must be a CUDA or ROCm device, got a machine without one (`rank`, or --target sm_90, "
            "shows the cost model's choice)"
        )
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    gpu = launch_table.gpu_of(device)
    served = {"head_dims": head_dims_among(launch_table.head_dims(gpu))}
    raise_faults(violations({"head_dims": head_dims}, served))
    source = f"measured on {gpu.name}"
    output = launch_table.CONFIGS / f"{gpu.name}.json" if output is None else output
    measured = Measurements(output, source)
    launches = [
        launch for launch in _launches(ops, head_dims, dtypes, lengths) if not measured.has_launch(*launch)
    ]
    target = launch_table.nearest_arch(gpu.arch)
    tried = {launch: candidates(launch[0].dtype, target) for launch in launches}
    ranking = order(target, tried, progress, deadline)
    choices = []
    for (key, n), ranked in progress_bar(ranking.items(), desc="time", disable=not progress):
        if time.monotonic() > deadline:
            break
        with torch.cuda.device(device):  # CUDA events are recorded on the current device
            best = _fastest(
                key, n, device, [assessment.job.config for assessment in ranked[:TIMED_CANDIDATES]]
            )
        choices.append(best)
        measured.add_launch(key, n, best.config)
    attentions = [
        key for key in implementations.keys(ops, head_dims, dtypes, lengths) if not measured.has_times(key)
    ]
    left = len(launches) - len(choices) + len(attentions)
    if len(choices) == len(launches):
        measured.publish()  # the kernels are compared with the attentions of others as they will be launched
        for attention in progress_bar(attentions, desc="compare", disable=not progress):
            if time.monotonic() > deadline:
                break
            with torch.cuda.device(device):
                measured.add_times(attention, implementations.times_of(attention, device))
            left -= 1
    measured.publish()
    if left:
        every = len(launches) + len(attentions)
        tqdm.write(f"Time is up: {left} of {every} choices are not measured; the next run goes on.")
    else:
        measured.end()
    if progress:
        tqdm.write("\n".join([*measured.sentences(), f"The table is {output}."]))
    return choices


def _check(arguments: dict[str, Any]) -> None:
    raise_faults(violations(arguments, {name: RULES[name] for name in arguments}))


def _launches(
    ops: Sequence[str], head_dims: Sequence[int], dtypes: Sequence[str], lengths: Sequence[int]
) -> list[Launch]:
    """Return every direction of the operations for every head dimension, dtype and length."""
    return [
        (launch_table.Key(op, direction, head_dim, dtype), n)
        for op in ops
        for direction in launch_table.DIRECTIONS[op]
        for head_dim, dtype, n in itertools.product(head_dims, dtypes, lengths)
    ]


def _fastest(
    key: launch_table.Key, n: int, device: torch.device, ranked: list[launch_table.Config]
) -> Choice:
    dtype = launch_table.DTYPES[key.dtype]
    defaults = {
        (key.op, direction): launch_table.choose(key.op, direction, key.head_dim, dtype, n, device)
        for direction in launch_table.DIRECTIONS[key.op]
    }
    default = defaults[key.op, key.direction]
    launch = problem(key, n, device)
    times = {}
    for config in dict.fromkeys([default, *ranked]):
        with launch_table.forced(defaults | {(key.op, key.direction): config}):
            try:
                times[config] = float(triton.testing.do_bench(launch, return_mode="median"))
            except OutOfResources:  # this GPU has less than the one in the cost model
                times[config] = math.inf
    best = min(times, key=times.__getitem__)
    if math.isinf(times[best]):
        raise RuntimeError(f"no candidate fits {launch_table.gpu_of(device).name} for {describe(key, n)}")
    return Choice(key, n, best, times[best], times[default])


def table(choices: Sequence[Choice]) -> str:
    """Return measured choices as a text table, one per line."""
    lines = [f"{HEAD} {'ms':>8} {'ms before':>9}"]
    for c in choices:
        lines.append(f"{_row(c.key, c.n, c.config)} {c.milliseconds:>8.4f} {c.default_milliseconds:>9.4f}")
    lines.append("ms: median time of the launch; for dkdv and dq, of the whole backward pass")
    lines.append("ms before: the same with the configuration used until now")
    return "\n".join(lines)


def ranking_table(ranking: Ranking, best: int = 3) -> str:
    """Return the best few candidates of each ranking as a text table."""
    lines = [f"{HEAD} {'clocks':>9} {'ins/score':>9} {'registers':>9} {'resident':>8}"]
    for (key, n), ranked in ranking.items():
        for a in ranked[:best]:
            figures = f"{a.clocks:>9.0f} {a.per_score:>9.2f} {a.code.registers:>9} {a.resident:>8}"
            lines.append(f"{_row(key, n, a.job.config)} {figures}")
    lines.append("clocks: estimated time of the launch, for comparison within one kernel only")
    lines.append("ins/score: instructions per attention score; registers: per thread")
    lines.append("resident: programs that a multiprocessor holds at once")
    return "\n".join(lines)


HEAD = f"{'operation':<16} {'kernel':<9} {'D':>4} {'dtype':<5} {'N':>5}  {'m/n/warps/stages':<17}"


def _row(key: launch_table.Key, n: int, config: launch_table.Config) -> str:
    return f"{key.op:<16} {key.direction:<9} {key.head_dim:>4} {key.dtype:<5} {n:>5}  {spell(config):<17}"


def spell(config: launch_table.Config) -> str:
    """Return a configuration as block_m/block_n/num_warps/num_stages."""
    return f"{config.block_m}/{config.block_n}/{config.num_warps}/{config.num_stages}"
