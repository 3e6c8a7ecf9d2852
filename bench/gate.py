"""Gates: the targets that the library has to meet on a CPU, and the baseline of the same GPU."""

from typing import NamedTuple

from .report import groups, growth
from .results import Results

ALLOWED = 1.05  # a median may grow by 5 % before it counts as a regression


class Target(NamedTuple):
    """The library's time or memory as a share of the eager formulation's in the same run."""

    group: str
    path: str
    most: float


# Of a training or evaluation step in fp32 on 2 cores.
TIME = (
    Target("train step deit_tiny_patch16_224 size=224 B=8 fp32", "library", 0.70),
    Target("train step deit_small_patch16_224 size=448 B=2 fp32", "library", 0.50),
    Target("train step deit_tiny_patch16_224 size=224 B=8 fp32", "library, paper layout", 0.33),
    Target("train step deit_small_patch16_224 size=448 B=2 fp32", "library, paper layout", 0.33),
    Target("evaluation step deit_tiny_patch16_224 size=224 B=8 fp32", "library", 0.78),
    Target("evaluation step deit_small_patch16_224 size=448 B=2 fp32", "library", 0.78),
    Target("evaluation step deit_tiny_patch16_224 size=224 B=8 fp32", "library, paper layout", 0.45),
    Target("evaluation step deit_small_patch16_224 size=448 B=2 fp32", "library, paper layout", 0.45),
    Target("rollout_row B=2 N=785 H=3 D=64 L=12 fp32", "library", 0.25),
)
MEMORY = tuple(target._replace(most=0.50) for target in TIME if target.group.startswith("train"))
GROWTH = 1.1  # the largest exponent of N in the library's memory


def missed_targets(results: Results) -> list[str]:
    """Every target of what was measured that these results miss, as sentences."""
    found = []
    entries = {(entry["group"], entry["name"]): entry for entry in results["benchmarks"]}
    first = {group[0]["group"]: group[0] for group in groups(results)}
    for what, targets in (("time", TIME), ("peak memory", MEMORY)):
        for group, path, most in targets:
            if (group, path) not in entries:
                continue
            extra = entries[group, path]["extra_info"]
            share = extra["ratio"]["50"]
            if what == "peak memory":
                share = extra["peak_bytes"] / first[group]["extra_info"]["peak_bytes"]
            if not share <= most:
                found.append(
                    f"{group}: {what} of {path} is {share:.2f} of {first[group]['name']}'s, above {most}"
                )
    for (name, path), (_, memory) in growth(results).items():
        if path == "library" and not memory <= GROWTH:
            found.append(f"{name}: the library's memory grows as N^{memory:.2f}, above {GROWTH}")
    return found


def regressions(results: Results, baseline: Results) -> list[str]:
    """Every path of the library whose median or peak memory exceeds the baseline's by more than 5 %, in the
    order of measurement, and every one that is no longer measured. Raises ValueError for another device.
    """
    here, there = results["machine_info"]["device"], baseline["machine_info"]["device"]
    if here != there:
        raise ValueError(f"baseline is of {there}; allowed is one of this device, {here}")
    now = {entry["fullname"]: entry for entry in results["benchmarks"]}
    found = []
    for before in baseline["benchmarks"]:
        name = before["fullname"]
        if not before["name"].startswith("library"):
            continue
        if name not in now:
            found.append(f"{name}: was measured for the baseline, and now is not")
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
