"""Agreement first, then time by turns, then memory."""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .shapes import DTYPES, dtypes_on

Outputs = dict[str, Tensor]
Run = Callable[[], Outputs]

# Relative error in the Euclidean norm, of each output of a path: sums of this length in another order.
TOLERANCE = {"fp32": 1e-4, "bf16": 4e-2}
MIN_ROUNDS, MAX_ROUNDS = 3, 15
GPU_ROUND_MS = 100  # of repetitions in one round on a GPU; a longer one runs once


class Path(NamedTuple):
    """A way to compute something. oracle: whose outputs these must equal, by default the first path's."""

    run: Run
    oracle: Run | None = None


class Measured(NamedTuple):
    """milliseconds: one figure per round, the rounds of all paths by turns. peak_bytes: the most that was
    allocated at once above what was there before.
    """

    milliseconds: list[float]
    peak_bytes: int


class Disagreement(RuntimeError):
    """The compared paths do not compute the same."""


def measure(
    paths: Mapping[str, Path], dtype: str, device: torch.device, seconds: float
) -> dict[str, Measured]:
    """Time and memory of every path, for about so many seconds; raises `Disagreement` before any timing."""
    check_agreement(paths, dtype)
    times = by_turns({name: path.run for name, path in paths.items()}, device, seconds)
    return {name: Measured(times[name], peak_bytes(path.run, device)) for name, path in paths.items()}


def check_agreement(paths: Mapping[str, Path], dtype: str) -> None:
    """Raises `Disagreement`, naming every output that differs from its oracle's, is missing or not finite."""
    (_, first), *others = paths.items()
    expected = _outputs(first.run)
    faults = []
    for name, path in others:
        oracle = expected if path.oracle is None else _outputs(path.oracle)
        actual = _outputs(path.run)
        if actual.keys() != oracle.keys():
            faults.append(f"{name}: only one side has {sorted(actual.keys() ^ oracle.keys())}")
        for output in sorted(actual.keys() & oracle.keys()):
            error = relative_error(actual[output], oracle[output])
            if not error <= TOLERANCE[dtype]:
                faults.append(f"{name}: {output} differs by {error:.2g} (allowed {TOLERANCE[dtype]:g})")
    if faults:
        raise Disagreement("refused to time what does not compute the same: " + "; ".join(faults))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖; infinite for other shapes, NaN for what is not finite."""
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.double(), expected.double()
    difference = float((actual - expected).norm())
    return difference / float(expected.norm()) if difference else 0.0


def by_turns(runs: Mapping[str, Run], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, A B C A B C: what slows the machine down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and (time.perf_counter() - start) * (done + 1) / done > seconds:
            break
        for name, run in runs.items():
            times[name].append(_milliseconds(run, device))
    return times


def _milliseconds(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=GPU_ROUND_MS // 4, rep=GPU_ROUND_MS, return_mode="median"))
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most bytes that tensors took at once while it ran, above those that were there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        run()
    # Every allocation and release of PyTorch's CPU allocator, inside operations and compiled code as well.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peaks(device: torch.device) -> dict[str, float]:
    """What the device can do here: FLOP/s of a large matrix product per dtype, bytes/s of a large copy."""
    side, size = (8192, 2**30) if device.type == "cuda" else (2048, 2**27)
    found = {}
    for name in dtypes_on(device):
        product = partial(_product, *torch.randn(2, side, side, device=device).to(DTYPES[name]))
        found[f"matmul {name}"] = 2 * side**3 / _seconds(product, device)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * size / _seconds(lambda: {"": target.copy_(source)}, device)
    return found


def _product(a: Tensor, b: Tensor) -> Outputs:
    return {"": a @ b}


def _seconds(run: Run, device: torch.device) -> float:
    run()
    return statistics.median(_milliseconds(run, device) for _ in range(5)) / 1e3


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, so that no path waits for the system to clear its pages anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _outputs(run: Run) -> Outputs:
    return {name: value.detach().clone() for name, value in run().items()}
