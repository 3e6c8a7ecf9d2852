"""`python -m bench`: every benchmark on this machine, a report, and the CPU's targets as a gate."""

import argparse
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from . import gate, report, results
from .measure import keep_freed_memory, measure, peaks
from .registry import Benchmark, benchmarks
from .shapes import dtypes_on


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU; the targets are for 2")
    parser.add_argument("--only", type=re.compile, default="", help="measure what this pattern is found in")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="have the C library keep freed memory (see docs/performance.md)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder of results and report"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.keep_memory:
        keep_freed_memory()
    if "bf16" not in dtypes_on(device):
        print("bf16 is left out: this CPU has no instructions for it")
    chosen = [b for b in benchmarks(device) if re.search(arguments.only, b.title)]
    if not chosen:
        sys.exit(f"--only is {arguments.only.pattern!r}, which is found in no benchmark")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and names are those of the current device
    document, _ = run(chosen, device, arguments.output)
    if device.type == "cpu" and (missed := gate.missed_targets(document)):
        sys.exit("\n".join([f"{len(missed)} targets missed:", *missed]))


def run(chosen: list[Benchmark], device: torch.device, output: Path) -> tuple[results.Results, Path]:
    """Measure, write `<device>.json`, `.md` and plots to output, and print the report.

    The file grows with every benchmark, so that an interrupted run keeps what it measured.
    """
    # In TF32, PyTorch's default for convolutions, a batch of patches and its two halves round differently.
    torch.backends.cudnn.allow_tf32 = False
    measured = []
    highest = peaks(device)
    for benchmark in (bar := tqdm(chosen, file=sys.stderr)):
        bar.set_description(benchmark.title)
        try:
            figures = measure(benchmark.build(), benchmark.dtype, device, benchmark.seconds)
        except torch.OutOfMemoryError:
            tqdm.write(f"{benchmark.title} is left out: a path does not fit this device's memory")
            continue
        measured.append((benchmark, figures))
        document = results.collect(measured, highest, device)
        results.write(file_of(document, output), document)
    if not measured:
        sys.exit("nothing was measured: no benchmark fits this device's memory")
    return document, publish(document, output)


def file_of(document: results.Results, output: Path) -> Path:
    """Results are named after their device."""
    return output / f"{document['machine_info']['device']}.json"


def publish(document: results.Results, output: Path) -> Path:
    """Write `<device>.json`, its report `<device>.md` and plots; returns the JSON file."""
    file = file_of(document, output)
    results.write(file, document)
    text = report.markdown(document, report.plot(document, output))
    file.with_suffix(".md").write_text(text)
    print(text)
    print(
        f"written to {file} (which `pytest-benchmark compare` reads too) and {file.with_suffix('.md').name}"
    )
    return file


if __name__ == "__main__":
    main()
