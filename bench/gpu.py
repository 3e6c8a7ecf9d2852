"""`python -m bench.gpu`: tests, tuning, all benchmarks, report and gate on the GPU at hand."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from dca_triton import tuner

from . import gate, results
from .__main__ import run
from .registry import benchmarks

# What the benchmarks of 16-bit steps and operations launch: heads of DeiT-Tiny and -Small in the reference
# layout, and of the paper's.
HEAD_DIMS, DTYPES = (16, 32, 64), ("bf16",)
BASELINES = Path(__file__).parent / "baselines"  # <device>.json of every GPU that has one


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of results and report")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU that PyTorch can use; `make static` and `make bench` need none")
    device = torch.device("cuda", torch.cuda.current_device())
    start = time.monotonic()
    if failed := gpu_tests():
        sys.exit(f"the GPU tests ended with status {failed}; nothing is measured while they fail")
    print(tuner.table(tuner.tune(device, head_dims=HEAD_DIMS, dtypes=DTYPES)))
    document, file = run(list(benchmarks(device)), device, arguments.output)
    print(f"{time.monotonic() - start:.0f} s in all")
    sys.exit(verdict(document, BASELINES / file.name))


def gpu_tests() -> int:
    """Run the tests that need a GPU; returns pytest's exit status."""
    # Most of their time is compilation, on the CPU.
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--maxprocesses", "8"]
    return subprocess.run([*pytest, "-m", "gpu", "tests"]).returncode


def verdict(document: results.Results, baseline: Path) -> str | None:
    """The first regression against the baseline of this device; None where there is none, saying so."""
    if not baseline.exists():
        print(f"no baseline of this device yet: commit these results as bench/baselines/{baseline.name}")
        return None
    if found := gate.regressions(document, results.read(baseline)):
        return f"first of {len(found)} regressions: {found[0]}"
    print(f"within {gate.ALLOWED - 1:.0%} of the baseline {baseline.name}")
    return None


if __name__ == "__main__":
    main()
