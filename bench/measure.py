"""Measure paths: check that they agree, then time them in turns, then measure memory."""

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

# Relative error of each output in the Euclidean norm; allows for another order of summation.
TOLERANCE = {"fp32": 1e-4, "bf16": 4e-2}
MIN_ROUNDS, MAX_ROUNDS = 3, 15
GPU_ROUND_MS = 100  # length of one round on a GPU; a path that takes longer runs once


class Path(NamedTuple):
    """A way to compute something.

    oracle: what its outputs must equal, by default the first path's. peer: the path is another library's
    code, which is left out where it does not run or computes something else. graph: time it as a CUDA graph,
    which has no costs of the host.
    """

    run: Run
    oracle: Run | None = None
    peer: bool = False
    graph: bool = False


class Measured(NamedTuple):
    """Time and memory of a path.

    milliseconds: one value per round. peak_bytes: the most memory allocated at once, above what was in use
    before.
    """

    milliseconds: list[float]
    peak_bytes: int


class Disagreement(RuntimeError):
    """Raised if the compared paths do not compute the same."""


def measure(
    paths: Mapping[str, Path], dtype: str, device: torch.device, seconds: float
) -> tuple[dict[str, Measured], list[str]]:
    """Measure every path for about `seconds` in all.

    Returns the figures, and a sentence for each peer that is left out. Raises `Disagreement` before any
    timing.
    """
    left_out = check_agreement(paths, dtype)
    paths = {name: path for name, path in paths.items() if name not in left_out}
    times = by_turns(paths, device, seconds)
    figures = {name: Measured(times[name], peak_bytes(path.run, device)) for name, path in paths.items()}
    return figures, list(left_out.values())


def check_agreement(paths: Mapping[str, Path], dtype: str) -> dict[str, str]:
    """Compare the outputs of every path with those of its oracle.

    Returns a sentence for each peer that does not run or computes something else. Raises `Disagreement` for
    other paths whose outputs differ, are missing, or are not finite.
    """
    (_, first), *others = paths.items()
    expected = _outputs(first.run)
    faults, left_out = [], {}
    for name, path in others:
        oracle = expected if path.oracle is None else _outputs(path.oracle)
        try:
            differences = _differences(_outputs(path.run), oracle, TOLERANCE[dtype])
        except Exception as error:  # whatever another library raises
            if not path.peer:
                raise
            differences = [f"it does not run ({type(error).__name__}: {_first_line(error)})"]
        if differences and path.peer:
            left_out[name] = f"{name}: {'; '.join(differences)}"
        faults += [f"{name}: {difference}" for difference in differences if not path.peer]
    if faults:
        raise Disagreement("paths that do not compute the same are not timed: " + "; ".join(faults))
    return left_out


def _differences(actual: Outputs, expected: Outputs, tolerance: float) -> list[str]:
    found = []
    if actual.keys() != expected.keys():
        found.append(f"only one side has {sorted(actual.keys() ^ expected.keys())}")
    for output in sorted(actual.keys() & expected.keys()):
        error = relative_error(actual[output], expected[output])
        if not error <= tolerance:
            found.append(f"{output} differs by {error:.2g}, more than {tolerance:g}")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖; infinite if shapes differ, NaN for non-finite values."""
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.double(), expected.double()
    difference = float((actual - expected).norm())
    return difference / float(expected.norm()) if difference else 0.0


def by_turns(paths: Mapping[str, Path], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Time paths in turns (A B C A B C), so that a slower phase of the machine slows all; in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    start = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and (time.perf_counter() - start) * (done + 1) / done > seconds:
            break
        for name, path in paths.items():
            times[name].append(_milliseconds(path.run, device, path.graph))
    return times


def _milliseconds(run: Run, device: torch.device, graph: bool = False) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench, do_bench_cudagraph

        if graph:
            return float(do_bench_cudagraph(run, rep=GPU_ROUND_MS, return_mode="median"))
        return float(do_bench(run, warmup=GPU_ROUND_MS // 4, rep=GPU_ROUND_MS, return_mode="median"))
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most bytes that tensors used at once during a run, above those in use before."""
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
    # All allocations and releases of PyTorch's CPU allocator, including those inside compiled code.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peaks(device: torch.device) -> dict[str, float]:
    """Measure the device's peaks: FLOP/s of a large matrix product per dtype, bytes/s of a large copy."""
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
    """Make the C library keep freed memory, so that no path waits for the system to clear new pages."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _outputs(run: Run) -> Outputs:
    return {name: value.detach().clone() for name, value in run().items()}
