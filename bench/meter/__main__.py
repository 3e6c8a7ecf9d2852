"""Estimate what every kernel costs on every supported chip, without a GPU."""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from dca_triton.ops import launch_table
from dca_triton.tuning.meter.assess import assess_all
from dca_triton.tuning.meter.chips import CHIPS
from dca_triton.tuning.meter.launches import Job

from . import freshness, gate, report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.meter", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=CHIPS, help="chips to compile for (default: all)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--baseline", type=Path, help="fail if a figure is more than 3 %% worse than in this file"
    )
    modes.add_argument(
        "--write-baseline", action="store_true", help=f"write all figures to {report.BASELINE.name}"
    )
    modes.add_argument(
        "--matrix", action="store_true", help="only check that every shipped configuration compiles and fits"
    )
    modes.add_argument(
        "--ranking",
        action="store_true",
        help="only check that the cost model ranks every shipped configuration first among its neighbors",
    )
    options = parser.parse_args()
    if options.write_baseline and options.arch:
        parser.error(
            "argument --write-baseline: must be used without --arch, because it replaces the whole file"
        )
    archs = tuple(dict.fromkeys(options.arch or CHIPS))
    if options.matrix:
        sys.exit(matrix(list(report.matrix_jobs(archs))))
    if options.ranking:
        sys.exit(ranking(archs))
    try:
        baseline = gate.read(options.baseline) if options.baseline else {}
    except ValueError as error:
        parser.error(f"argument --baseline: {error}")
    try:
        figures = measure(report.default_jobs(archs))
    except RuntimeError as error:
        sys.exit(f"{error}: {error.__cause__!r}" if error.__cause__ else str(error))
    print(report.table(figures))
    if options.write_baseline:
        versions = {"torch": torch.__version__, "triton": launch_table.triton_version()}
        gate.write(report.BASELINE, figures, versions)
        print(f"Wrote {len(figures)} jobs to {report.BASELINE}.")
    if options.baseline:
        baseline = {name: f for name, f in baseline.items() if name.split()[0] in archs}
        if found := gate.regressions(figures, baseline):
            sys.exit(f"first of {len(found)} regressions: {found[0]}")
        print(f"The figures of {len(figures)} jobs are within 3 % of {options.baseline}.")


def measure(jobs: list[Job]) -> dict[str, report.Figures]:
    """Return the figures of every job, in order; raises RuntimeError for a job that does not compile."""
    results = {}
    for job, result in assess_all(jobs, progress=True):
        if isinstance(result, Exception):
            raise RuntimeError(f"{report.name_of(job)}: {job.config} does not compile") from result
        results[job] = report.figures_of(result)
    return {report.name_of(job): results[job] for job in jobs}


def matrix(jobs: list[Job]) -> str | None:
    """Compile every job and print what is wrong; return None if all are sound."""
    found = []
    for job, result in assess_all(jobs, progress=True):
        for violation in gate.violations(job, result):
            known = gate.spills_by_necessity(job)
            tqdm.write(f"known, allowed: {violation}" if known else violation)
            if not known:
                found.append(violation)
    chips = len({job.arch for job in jobs})
    print(f"Compiled {len(jobs)} shipped configurations for {chips} chips: {len(found)} violations")
    return f"{len(found)} violations in {len(jobs)} configurations" if found or not jobs else None


def ranking(archs: tuple[str, ...]) -> str | None:
    """Rank every shipped configuration again and print those that a neighbor beats; None if there is none."""
    found = [line for arch in archs for line in freshness.stale(arch, progress=True)]
    for line in found:
        print(line)
    return f"{len(found)} configurations are not ranked first" if found else None


if __name__ == "__main__":
    main()
