"""The result of an ablation: a table in Markdown, ablation.json and ablation.png."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from ..evaluation.paired import Estimate, estimate, paired_differences
from ..files import atomic_write
from ..version import __version__
from ..visualization.comparison import comparison

HEAD = ("variant", "score", "mean, %", "SD", "n", "difference", "SE", "step")


@dataclass(frozen=True)
class Result:
    """A variant's runs.

    Attributes:
        overrides: What it changes in the config.
        config: All its options, those of its first run.
        score: The name of the score that counts; None without a finished run.
        all_scores: Every score of each finished run, by seed.
        failures: The reason of each run that failed, by seed.
        seconds: Of each step that was timed.
    """

    overrides: Mapping[str, Any]
    config: Mapping[str, Any]
    score: str | None
    all_scores: Mapping[int, Mapping[str, float]]
    failures: Mapping[int, str]
    seconds: list[float]

    @property
    def scores(self) -> dict[int, float]:
        """The score that counts, by seed."""
        return {} if self.score is None else {k: found[self.score] for k, found in self.all_scores.items()}


@dataclass(frozen=True)
class Ablation:
    """The results of all variants; the first one is what the others are compared with.

    Attributes:
        variants: By name.
        part: Which photos were scored.
        timed: What was timed, in words.
    """

    variants: Mapping[str, Result]
    part: str
    timed: str

    @property
    def first(self) -> str:
        """The name of the first variant."""
        return next(iter(self.variants))

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        return sorted(
            {seed for each in self.variants.values() for seed in (*each.all_scores, *each.failures)}
        )

    def differences(self) -> dict[str, Estimate | None]:
        """The paired differences to the first variant."""
        return paired_differences({name: result.scores for name, result in self.variants.items()})

    def step(self, name: str) -> float | None:
        """The median seconds of a variant's step."""
        seconds = self.variants[name].seconds
        return median(seconds) if seconds else None

    def table(self) -> str:
        """The table in Markdown, with what its numbers mean below."""
        base = self.step(self.first)
        rows = [HEAD, ("---",) * len(HEAD)]
        for name, found in self.record()["variants"].items():
            relative = found["step_relative"]
            rows.append(
                (
                    name,
                    found["score"] or "-",
                    _percent(found["mean"]),
                    _percent(found["sd"]),
                    str(len(found["scores"])),
                    _percent(found["difference"], "+"),
                    _percent(found["standard_error"]),
                    "-" if relative is None else f"{relative:.2f}",
                )
            )
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        seeds = ", ".join(map(str, self.seeds))
        lines += [
            "",
            f"Scores after the last epoch, scored photos: {self.part}; mean and SD over the seeds {seeds}.",
            f"Difference: to {self.first}, in points, paired by seed; SE: its SD divided by the root of n.",
        ]
        if base is not None:
            lines.append(f"Step: relative to {self.first}, {1000 * base:.1f} ms; {self.timed}.")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything, as plain values."""
        differences, base = self.differences(), self.step(self.first)
        variants = {}
        for name, result in self.variants.items():
            found, difference, step = estimate(result.scores), differences.get(name), self.step(name)
            variants[name] = {
                "overrides": result.overrides,
                "config": result.config,
                "score": result.score,
                "scores": result.scores,
                "mean": found and found.mean,
                "sd": found and found.deviation,
                "difference": difference and difference.mean,
                "standard_error": difference and difference.error,
                "pairs": difference.count if difference else None,
                "step_seconds": step,
                "step_relative": None if step is None or base is None else step / base,
                "all_step_seconds": result.seconds,
                "all_scores": result.all_scores,
                "failures": result.failures,
            }
        return {
            "first": self.first,
            "seeds": self.seeds,
            "part": self.part,
            "timed": self.timed,
            "variants": variants,
            "versions": {"dca_triton": __version__, "torch": torch.__version__, "timm": timm.__version__},
        }

    def write(self, folder: Path) -> None:
        """Write ablation.json and, if a run was scored, ablation.png."""
        with atomic_write(folder / "ablation.json", "w") as stream:
            stream.write(json.dumps(self.record(), indent=2, default=str) + "\n")
        scores = {name: list(result.scores.values()) for name, result in self.variants.items()}
        found = {name: estimate(result.scores) for name, result in self.variants.items()}
        means = {name: (each.mean, each.deviation) for name, each in found.items() if each}
        gaps = {name: (each.mean, each.error) for name, each in self.differences().items() if each}
        names = dict.fromkeys(result.score for result in self.variants.values() if result.score)
        comparison(scores, means, gaps, folder / "ablation.png", f"{' or '.join(names)}, %")


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"
