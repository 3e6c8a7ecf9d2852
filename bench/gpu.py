"""Run the GPU tests, tuning and all benchmarks on this machine's GPU, and compare with its baseline.

At the end there is one file to send back: <device>.zip.
"""

import argparse
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import torch

from dca_triton.cli.info import info
from dca_triton.files import atomic_write
from dca_triton.ops import launch_table
from dca_triton.tuning import tuner

from . import arguments, gate, results
from .__main__ import run
from .registry import benchmarks

# What the 16-bit benchmarks launch: head dimensions of DeiT-Tiny and DeiT-Small in the reference layout, and
# of both in the paper layout.
HEAD_DIMS, DTYPES = (16, 32, 64), ("bf16",)
TESTS = "tests.txt"
BASELINES = Path(__file__).parent / "baselines"  # <device>.json for each GPU that has a baseline


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--output", type=arguments.folder, help="folder for results and report (default: runs/gpu)"
    )
    parser.add_argument(
        "--minutes",
        type=arguments.positive,
        default=30,
        help="time for everything; tuning stops at half of it, to go on in the next run, and benchmarks that "
        "do not fit are left out, operations first (default: 30)",
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU on this machine; `make static` and `make bench` need none")
    device = torch.device("cuda", torch.cuda.current_device())
    output = options.output or arguments.folder("runs/gpu")
    name = results.device_name(device)
    file = BASELINES / f"{name}.json"
    try:
        baseline = gate.read_baseline(file, file.stem) if file.exists() else None
    except ValueError as error:
        sys.exit(str(error))
    start = time.monotonic()
    try:
        found = measured(device, output, start, 60 * options.minutes)
    finally:
        print(f"To send back: {package(output, name)}")
    print(f"Total time: {time.monotonic() - start:.0f} s")
    sys.exit(verdict(found, baseline, file.name))


def measured(device: torch.device, output: Path, start: float, seconds: float) -> results.Results:
    """Test, tune and measure within `seconds` after `start`, on the clock of `time.monotonic`."""
    if failed := gpu_tests(output / TESTS):
        sys.exit(f"the GPU tests failed (pytest exit status {failed}), so nothing was measured")
    try:
        choices = tuner.tune(device, head_dims=HEAD_DIMS, dtypes=DTYPES, deadline=start + seconds / 2)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"tuning failed: {error}")
    print(tuner.table(choices))
    document, _ = run(list(benchmarks(device)), device, output, start + seconds)
    return document


def gpu_tests(log: Path) -> int:
    """Run the tests that need a GPU, copy what they print to `log`, and return pytest's exit status."""
    # Several processes, because most of the time is compilation on the CPU.
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--maxprocesses", "8"]
    with (
        log.open("w") as file,
        subprocess.Popen([*pytest, "-m", "gpu", "tests"], stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
    return process.returncode


def package(output: Path, device: str) -> Path:
    """Write `<device>.zip`: the tests' output, results, report and plots, the table, and the environment."""
    versions = "\n".join(sorted({f"{d.name}=={d.version}" for d in distributions()}))
    table = launch_table.CONFIGS / f"{device}.json"
    files = {path.name: path for path in output.iterdir() if path.suffix in (".txt", ".json", ".md", ".png")}
    with atomic_write(output / f"{device}.zip") as stream, ZipFile(stream, "w", ZIP_DEFLATED) as archive:
        for name, path in files.items():
            archive.write(path, name)
        if table.exists():
            archive.write(table, f"table/{table.name}")
        archive.writestr("environment.txt", f"{info()}\n{versions}\n")
    return output / f"{device}.zip"


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
