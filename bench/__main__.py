"""Run the benchmarks on this machine, write a report, and check the CPU targets."""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import arguments, gate, report, results
from .measure import Disagreement, Measured, keep_freed_memory, measure, peaks
from .registry import Benchmark, benchmarks
from .shapes import dtypes_on


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", type=arguments.device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--threads",
        type=arguments.positive,
        default=2,
        help="CPU threads; the targets are set for 2, the default",
    )
    parser.add_argument(
        "--only",
        type=arguments.pattern,
        help="run only benchmarks whose title matches this regular expression",
    )
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="make the C library keep freed memory (see docs/performance.md)",
    )
    parser.add_argument(
        "--output",
        type=arguments.folder,
        help="folder for results and report (default: runs/bench, with --only runs/bench-only)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    chosen = [b for b in benchmarks(device) if options.only is None or options.only.search(b.title)]
    if not chosen:
        parser.error(f"argument --only: must match the title of a benchmark, got {options.only.pattern!r}")
    # Some benchmarks must not replace the results of all of them.
    output = options.output or arguments.folder("runs/bench" if options.only is None else "runs/bench-only")
    if options.keep_memory:
        keep_freed_memory()
    if "bf16" not in dtypes_on(device):
        print("Skipping bf16: this CPU has no bf16 instructions.")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # CUDA events and device names are those of the current device
    document, _ = run(chosen, device, output)
    if device.type == "cpu" and (missed := gate.missed_targets(document)):
        sys.exit("\n".join([f"{len(missed)} targets missed:", *missed]))


def run(
    chosen: list[Benchmark], device: torch.device, output: Path, deadline: float = math.inf
) -> tuple[results.Results, Path]:
    """Measure, write `<device>.json`, `<device>.md` and plots to output, and print the report.

    The results so far are in `<device>.unfinished.json` while it runs. Results of an earlier run are replaced
    at the end. A benchmark that would probably not end before the deadline, on the clock of
    `time.monotonic`, is left out, and the report says so. Benchmarks of the same name take about as long.
    """
    # In TF32, PyTorch's default for convolutions, a batch of patches and its two halves round differently.
    torch.backends.cudnn.allow_tf32 = False
    measured: list[tuple[Benchmark, dict[str, Measured]]] = []
    left_out: list[str] = []
    took: dict[str, float] = {}
    highest = peaks(device)
    for benchmark in (bar := tqdm(chosen, file=sys.stderr)):
        bar.set_description(benchmark.title)
        start = time.monotonic()
        if start + max(benchmark.seconds, took.get(benchmark.name, 0)) > deadline:
            left_out.append(f"{benchmark.title}: there was no time left for it")
            continue
        try:
            figures, without = measure(benchmark.build(), benchmark.dtype, device, benchmark.seconds)
        except torch.OutOfMemoryError:
            left_out.append(f"{benchmark.title}: one of its paths needs more memory than this device has")
            continue
        except Disagreement as error:
            sys.exit(f"{benchmark.title}: {error}")
        measured.append((benchmark, figures))
        left_out += [f"{benchmark.title}: {reason}" for reason in without]
        took[benchmark.name] = max(took.get(benchmark.name, 0), time.monotonic() - start)
        document = results.collect(measured, highest, device, left_out)
        results.write(unfinished(document, output), document)
    if not measured:
        sys.exit("\n".join(["nothing was measured:", *left_out]))
    document = results.collect(measured, highest, device, left_out)
    file = publish(document, output)
    unfinished(document, output).unlink(missing_ok=True)
    return document, file


def unfinished(document: results.Results, output: Path) -> Path:
    """Return the file that holds the results of a run while it goes on."""
    return output / f"{document['machine_info']['device']}.unfinished.json"


def publish(document: results.Results, output: Path) -> Path:
    """Write results, report and plots, print the report, and return the file of the results."""
    file = output / f"{document['machine_info']['device']}.json"
    results.write(file, document)
    text = report.markdown(document, report.plot(document, output))
    results.replace(file.with_suffix(".md"), text.encode())
    print(text)
    print(f"Results: {file} (also readable by `pytest-benchmark compare`)")
    print(f"Report:  {file.with_suffix('.md')}")
    return file


if __name__ == "__main__":
    main()
