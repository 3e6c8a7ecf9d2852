"""`python -m bench`: every benchmark on this machine, a report, and the CPU's targets as a gate."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from . import gate, report, results
from .measure import keep_freed_memory, measure, peaks
from .registry import benchmarks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU; the targets are for 2")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder of results and report"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    document, _ = run(device, arguments.output)
    if device.type == "cpu" and (missed := gate.missed_targets(document)):
        sys.exit("\n".join([f"{len(missed)} targets missed:", *missed]))


def run(device: torch.device, output: Path) -> tuple[results.Results, Path]:
    """Measure everything, write `<device>.json`, `.md` and plots to output, and print the report."""
    if device.type == "cpu":
        keep_freed_memory()
    measured = []
    for benchmark in (bar := tqdm(list(benchmarks(device)), file=sys.stderr)):
        bar.set_description(benchmark.title)
        measured.append((benchmark, measure(benchmark.build(), benchmark.dtype, device, benchmark.seconds)))
    document = results.collect(measured, peaks(device), device)
    return document, publish(document, output)


def publish(document: results.Results, output: Path, say: Callable[[str], None] = print) -> Path:
    """Write `<device>.json`, its report `<device>.md` and plots; returns the JSON file."""
    file = output / f"{document['machine_info']['device']}.json"
    results.write(file, document)
    text = report.markdown(document, report.plot(document, output))
    file.with_suffix(".md").write_text(text)
    say(text)
    say(f"written to {file} (which `pytest-benchmark compare` reads too) and {file.with_suffix('.md').name}")
    return file


if __name__ == "__main__":
    main()
