"""Run the GPU tests, tuning and all benchmarks on this machine's GPU, and compare with its baseline."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from dca_triton.tuning import tuner

from . import arguments, gate, results
from .__main__ import run
from .registry import benchmarks

# What the 16-bit benchmarks launch: head dimensions of DeiT-Tiny and DeiT-Small in the reference layout, and
# of both in the paper layout.
HEAD_DIMS, DTYPES = (16, 32, 64), ("bf16",)
BASELINES = Path(__file__).parent / "baselines"  # <device>.json for each GPU that has a baseline


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--output", type=arguments.folder, help="folder for results and report (default: runs/gpu)"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU on this machine; `make static` and `make bench` need none")
    device = torch.device("cuda", torch.cuda.current_device())
    output = options.output or arguments.folder("runs/gpu")
    file = BASELINES / f"{results.device_name(device)}.json"
    try:
        baseline = gate.read_baseline(file, file.stem) if file.exists() else None
    except ValueError as error:
        sys.exit(str(error))
    start = time.monotonic()
    if failed := gpu_tests():
        sys.exit(f"the GPU tests failed (pytest exit status {failed}), so nothing was measured")
    try:
        choices = tuner.tune(device, head_dims=HEAD_DIMS, dtypes=DTYPES)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"tuning failed: {error}")
    print(tuner.table(choices))
    document, _ = run(list(benchmarks(device)), device, output)
    print(f"Total time: {time.monotonic() - start:.0f} s")
    sys.exit(verdict(document, baseline, file.name))


def gpu_tests() -> int:
    """Run the tests that need a GPU; return pytest's exit status."""
    # Several processes, because most of the time is compilation on the CPU.
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--maxprocesses", "8"]
    return subprocess.run([*pytest, "-m", "gpu", "tests"]).returncode


def verdict(document: results.Results, baseline: results.Results | None, name: str) -> str | None:
    """Return the first regression against the device's baseline; None if there is no regression."""
    if baseline is None:
        print(f"This device has no baseline yet. To make these results its baseline: bench/baselines/{name}")
        return None
    if regressions := gate.regressions(document, baseline):
        return f"first of {len(regressions)} regressions: {regressions[0]}"
    print(f"Every figure is within {gate.ALLOWED - 1:.0%} of the baseline {name}.")
    return None


if __name__ == "__main__":
    main()
