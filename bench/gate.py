"""Gates: the library's targets on a CPU, and regressions against the baseline of the same GPU."""

import json
from pathlib import Path
from typing import NamedTuple

from .report import growth
from .results import Results, read
from .shapes import DTYPES, LENGTHS

ALLOWED = 1.05  # a median may grow by 5 % before it counts as a regression


class Target(NamedTuple):
    """The most time or memory that a path may take, as a share of another one's in the same run."""

    group: str
    path: str
    base: str
    most: float


TINY, SMALL = "deit_tiny_patch16_224 size=224 B=8", "deit_small_patch16_224 size=448 B=2"
# Set on 2 cores.
TIME = (
    # Never slower than what an expert writes, within the spread of the measurement.
    *(
        Target(f"{step} {shape} {dtype}", "library", "best own way", 1.02)
        for step in ("train step", "evaluation step")
        for shape in (TINY, SMALL)
        for dtype in DTYPES
    ),
    *(
        Target(f"{name} B=2 N={N} H=3 D=64 L=12 fp32", "library", "SDPA on cat", 1.02)
        for name in ("pair_attention", "pair_attention, backward too")
        for N in LENGTHS
    ),
    # The price of DCAL, in steps of fine-tuning the same backbone.
    *(
        Target(f"train step {shape} fp32", path, base, most)
        for shape in (TINY, SMALL)
        for path, base, most in (
            ("library, paper layout", "SA alone", 2.10),
            ("library, paper layout, PWCA in the last four blocks", "SA alone", 1.45),
            ("library, local readout", "library", 1.08),
        )
    ),
    # What the formulas cost when they are written down.
    Target(f"train step {TINY} fp32", "library", "eager maps", 0.70),
    Target(f"train step {SMALL} fp32", "library", "eager maps", 0.50),
    Target(f"train step {TINY} fp32", "library, paper layout", "eager maps", 0.33),
    Target(f"train step {SMALL} fp32", "library, paper layout", "eager maps", 0.33),
    Target(f"evaluation step {TINY} fp32", "library", "eager maps", 0.78),
    Target(f"evaluation step {SMALL} fp32", "library", "eager maps", 0.78),
    Target(f"evaluation step {TINY} fp32", "library, paper layout", "eager maps", 0.45),
    Target(f"evaluation step {SMALL} fp32", "library, paper layout", "eager maps", 0.45),
    Target("rollout_row B=2 N=785 H=3 D=64 L=12 fp32", "library", "matrix", 0.25),
)
MEMORY = tuple(
    Target(f"train step {shape} fp32", path, "eager maps", 0.50)
    for shape in (TINY, SMALL)
    for path in ("library", "library, paper layout")
)
GROWTH = 1.1  # the library's memory may grow as N to this power at most


def missed_targets(results: Results) -> list[str]:
    """Return a sentence for each target that these results miss; benchmarks that did not run are ignored."""
    found = []
    entries = {(entry["group"], entry["name"]): entry["extra_info"] for entry in results["benchmarks"]}
    for what, targets in (("time", TIME), ("peak memory", MEMORY)):
        for group, path, base, most in targets:
            if (group, path) not in entries:
                continue
            extra = entries[group, path]
            share = extra["ratios"][base]["50"]
            if what == "peak memory":
                share = extra["peak_bytes"] / entries[group, base]["peak_bytes"]
            if not share <= most:
                found.append(
                    f"{group}: {what} of {path!r} must be at most {most:.2f} of {base!r}, got {share:.2f}"
                )
    for (name, path), (_, memory) in growth(results).items():
        if path == "library" and not memory <= GROWTH:
            found.append(f"{name}: the library's memory must grow as N^{GROWTH} at most, got N^{memory:.2f}")
    return found


def read_baseline(file: Path, device: str) -> Results:
    """Read a baseline; raises ValueError if the file is damaged or of another device."""
    try:
        baseline = read(file)
        _check_device(baseline, device)
        regressions(baseline, baseline)  # reads every figure that a comparison needs
    except (
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"baseline must be a results file, got {file} ({error!r})") from error
    return baseline


def _check_device(baseline: Results, device: str) -> None:
    if (other := baseline["machine_info"]["device"]) != device:
        raise ValueError(f"baseline must be of this device, {device}, got one of {other}")


def regressions(results: Results, baseline: Results) -> list[str]:
    """Return a sentence for each path of the library that got slower or larger by more than 5 %.

    Paths that were not measured this time count too. The order is that of measurement. Raises ValueError if
    the baseline is of another device.
    """
    _check_device(baseline, results["machine_info"]["device"])
    now = {entry["fullname"]: entry for entry in results["benchmarks"]}
    found = []
    for before in baseline["benchmarks"]:
        name = before["fullname"]
        if not before["name"].startswith("library"):
            continue
        if name not in now:
            found.append(f"{name}: in the baseline, but not measured this time")
            continue
        for what, new, old in (
            ("median", now[name]["stats"]["median"] * 1e3, before["stats"]["median"] * 1e3),
            (
                "peak MiB",
                now[name]["extra_info"]["peak_bytes"] / 2**20,
                before["extra_info"]["peak_bytes"] / 2**20,
            ),
        ):
            if not new <= old * ALLOWED:
                found.append(f"{name}: {what} rose from {old:.4g} to {new:.4g} ({new / old - 1:+.1%})")
    return found
