"""`python -m bench.static`: the table, the gate (`--baseline FILE`) and the compile matrix (`--matrix`)."""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from dca_triton import tuning
from dca_triton.static.assess import assess_all
from dca_triton.static.chips import CHIPS
from dca_triton.static.problems import Job

from . import gate, report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=CHIPS, default=list(CHIPS), help="chips to compile for")
    parser.add_argument(
        "--baseline", type=Path, help="fail on the first regression over 3 %% against this file"
    )
    parser.add_argument("--write-baseline", action="store_true", help=f"write {report.BASELINE.name}")
    parser.add_argument("--matrix", action="store_true", help="compile every shipped configuration instead")
    arguments = parser.parse_args()
    archs = tuple(arguments.arch)
    if arguments.matrix:
        sys.exit(matrix(list(report.matrix_jobs(archs))))
    figures = measure(report.default_jobs(archs))
    print(report.table(figures))
    if arguments.write_baseline:
        versions = {"torch": torch.__version__, "triton": tuning.triton_version()}
        gate.write(report.BASELINE, figures, versions)
    if arguments.baseline:
        baseline = {n: f for n, f in gate.read(arguments.baseline).items() if n.split()[0] in archs}
        if found := gate.regressions(figures, baseline):
            sys.exit(f"first of {len(found)} regressions: {found[0]}")
        print(f"{len(figures)} figures within 3 % of {arguments.baseline}")


def measure(jobs: list[Job]) -> dict[str, report.Figures]:
    """The figures of every job, in the order of the jobs; a job that does not compile raises what it
    raised."""
    results = {}
    for job, result in assess_all(jobs, progress=True):
        if isinstance(result, Exception):
            raise RuntimeError(f"{report.name_of(job)}: {job.config} does not compile") from result
        results[job] = report.figures_of(result)
    return {report.name_of(job): results[job] for job in jobs}


def matrix(jobs: list[Job]) -> str | None:
    """Compile every job and tell what fails; None if nothing does."""
    found = []
    for job, result in assess_all(jobs, progress=True):
        for violation in gate.violations(job, result):
            known = gate.spills_by_necessity(job)
            tqdm.write(f"known: {violation}" if known else violation)
            if not known:
                found.append(violation)
    chips = len({job.arch for job in jobs})
    print(f"{len(jobs)} shipped configurations compiled for {chips} chips, {len(found)} bad")
    return f"{len(found)} of {len(jobs)} are bad" if found or not jobs else None


if __name__ == "__main__":
    main()
