"""Gates: figures against the committed baseline, and what every shipped configuration must satisfy."""

import dataclasses
import json
from pathlib import Path

from dca_triton.ops import launch_table
from dca_triton.tuning.meter.assess import Assessment
from dca_triton.tuning.meter.chips import CHIPS
from dca_triton.tuning.meter.launches import Job

from .report import Figures, name_of

ALLOWED = 1.03  # a figure may grow by 3 % before it counts as a regression
LOWER_IS_BETTER = ("per_score", "executed", "moved", "clocks")


def read(path: Path) -> dict[str, Figures]:
    """Read the figures of a baseline; raises ValueError if the file is missing or is not a baseline."""
    try:
        lines = json.loads(path.read_text())["figures"]
        return {name: Figures(**figures) for name, figures in lines.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"must be a baseline written by --write-baseline, got {path} ({error})") from error


def write(path: Path, figures: dict[str, Figures], versions: dict[str, str]) -> None:
    """Write figures as a baseline, one line per job."""
    lines = {name: dataclasses.asdict(figures[name]) for name in sorted(figures)}
    launch_table.write_lines(path, {"versions": versions}, {"figures": lines})


def regressions(figures: dict[str, Figures], baseline: dict[str, Figures]) -> list[str]:
    """Return a sentence for each figure worse than in the baseline and each job missing on one side."""
    found = [
        f"{name}: in the baseline, but not measured this time" for name in baseline.keys() - figures.keys()
    ]
    found += [f"{name}: not in the baseline" for name in figures.keys() - baseline.keys()]
    for name in sorted(figures.keys() & baseline.keys()):
        now, before = figures[name], baseline[name]
        for field in LOWER_IS_BETTER:
            new, old = getattr(now, field), getattr(before, field)
            if not new <= old * ALLOWED:
                found.append(f"{name}: {field} rose from {old:g} to {new:g} ({new / old - 1:+.1%})")
        if now.spills > before.spills:
            found.append(f"{name}: spill instructions rose from {before.spills} to {now.spills}")
        for field in ("tensor", "async_copies"):
            if getattr(before, field) and not getattr(now, field):
                found.append(f"{name}: a main loop lost its {field.replace('_', ' ')} instructions")
    return found


def spills_by_necessity(job: Job) -> bool:
    """Return whether every tile of a kernel is known to spill on a chip; the matrix prints these cases.

    RDNA 3 needs every matrix operand twice and has no fp32 matrix instructions. For large head dimensions the
    backward pass then needs more than the 256 registers of a thread.
    """
    return job.arch == "gfx1100" and job.key.direction in ("dkdv", "dq") and job.key.head_dim > 64


def violations(job: Job, result: Assessment | Exception) -> list[str]:
    """Return the faults of a configuration.

    It fails to compile, spills, exceeds the chip, or does not use matrix instructions. On NVIDIA, spills
    outside of the hot loops are allowed: they cost less than a smaller tile. `regressions` finds new ones.
    """
    if isinstance(result, Exception):
        return [f"{name_of(job)}: {job.config} does not compile: {result!r}"]
    code, limit = result.code, CHIPS[job.arch].smem_program
    found = []
    anywhere = code.spills + code.stack if job.arch.startswith("gfx") else 0
    if anywhere or any(loop.spills for loop in code.loops):
        found.append(f"{code.spills} spill instructions, {code.stack} bytes of stack")
    if code.shared > limit:
        found.append(f"shared memory must be at most {limit} bytes, got {code.shared} bytes")
    if job.key.dtype != "fp32" and not all(loop.tensor for loop in code.loops):
        found.append("a loop without matrix instructions")
    if not result.resident:
        found.append("no program fits on the chip")
    return [f"{name_of(job)}: {job.config}: {'; '.join(found)}"] if found else []
