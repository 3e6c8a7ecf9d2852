"""Results as JSON in the format of pytest-benchmark, so that `pytest-benchmark compare` can read them."""

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path as File
from typing import Any

import numpy as np
import timm
import torch

from dca_triton.files import atomic_write
from dca_triton.ops import launch_table

from .measure import Measured
from .registry import Benchmark

Results = dict[str, Any]
PERCENTILES = (5, 10, 25, 50, 75, 90, 95)


def collect(
    measured: Iterable[tuple[Benchmark, Mapping[str, Measured]]],
    peaks: Mapping[str, float],
    device: torch.device,
    left_out: Iterable[str] = (),
) -> Results:
    """Return one document: the machine, and an entry for each path of each benchmark (times in seconds).

    left_out: a sentence for each benchmark and path that was not measured.
    """
    return {
        "machine_info": machine(device),
        "commit_info": commit(),
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": "5.0.0",
        "peaks": dict(peaks),
        "left_out": list(left_out),
        "benchmarks": [
            entry(benchmark, name, figures, paths)
            for benchmark, paths in measured
            for name, figures in paths.items()
        ],
    }


def entry(
    benchmark: Benchmark, path: str, figures: Measured, paths: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return the entry of one path: time statistics, and its ratio to every path, taken per round."""
    return {
        "group": benchmark.title,
        "name": path,
        "fullname": f"{benchmark.title}: {path}",
        "params": {**benchmark.sizes, "dtype": benchmark.dtype},
        "param": None,
        "options": {},
        "extra_info": {
            "benchmark": benchmark.name,
            "ratios": {name: ratio(figures, base) for name, base in paths.items()},
            "peak_bytes": figures.peak_bytes,
            "flops": benchmark.flops,
            "moved": benchmark.moved,
        },
        "stats": statistics_of([t / 1e3 for t in figures.milliseconds]),
    }


def ratio(figures: Measured, base: Measured) -> dict[str, float]:
    """Return the quartiles over rounds of the time, as a share of that of the base in the same round."""
    shares = [own / other for own, other in zip(figures.milliseconds, base.milliseconds, strict=True)]
    return dict(zip(("25", "50", "75"), np.percentile(shares, (25, 50, 75)).tolist(), strict=True))


def statistics_of(seconds: list[float]) -> dict[str, Any]:
    """Return the statistics that pytest-benchmark stores for repeated times, plus percentiles."""
    percentiles = dict(zip(map(str, PERCENTILES), np.percentile(seconds, PERCENTILES).tolist(), strict=True))
    mean = statistics.fmean(seconds)
    return {
        "min": min(seconds),
        "max": max(seconds),
        "mean": mean,
        "stddev": statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
        "median": percentiles["50"],
        "q1": percentiles["25"],
        "q3": percentiles["75"],
        "iqr": percentiles["75"] - percentiles["25"],
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "outliers": "0;0",
        "ld15iqr": min(seconds),
        "hd15iqr": max(seconds),
        "ops": 1 / mean,
        "total": sum(seconds),
        "rounds": len(seconds),
        "iterations": 1,
        "percentiles": percentiles,
        "data": seconds,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device and the software versions. The host name is left out on purpose."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python_version": platform.python_version(),
        "torch": torch.__version__,
        "triton": launch_table.triton_version(),
        "timm": timm.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
    }


def device_name(device: torch.device) -> str:
    """Return the device's name in a form that can be a file name."""
    if device.type == "cuda":
        return launch_table.gpu_of(torch.device("cuda", torch.cuda.current_device())).name
    return launch_table.sanitized(f"{cpu_name()} {torch.get_num_threads()} threads")


def cpu_name() -> str:
    """Return the processor's name on Linux, elsewhere its architecture."""
    known = File("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def commit() -> dict[str, Any]:
    """Return the commit of the checkout and whether files were changed; empty outside a checkout."""
    here = File(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "id": git("rev-parse", "HEAD"),
            "time": git("log", "-1", "--format=%cI"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "project": "dca-triton",
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def write(file: File, results: Results) -> None:
    """Write results atomically."""
    replace(file, (json.dumps(results, indent=1) + "\n").encode())


def replace(file: File, data: bytes) -> None:
    """Write a file atomically: it has the old content or the new, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as stream:
        stream.write(data)


def read(file: File) -> Results:
    """Read results that `write` wrote."""
    return json.loads(file.read_text())
