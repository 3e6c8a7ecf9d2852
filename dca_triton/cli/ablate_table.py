"""The result of an ablation: a table in Markdown, ablation.json and ablation.png."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from ..evaluation.paired import estimate, paired_differences
from ..files import atomic_write
from ..version import __version__
from ..visualization.comparison import comparison


@dataclass(frozen=True)
class Result:
    """A variant's runs.

    Attributes:
        overrides: What it changes in the config.
        config: All its options, those of its first run.
        all_scores: Every score of each finished run, by seed.
        failures: The reason of each run that failed, by seed.
        seconds: Of each step that was timed.
    """

    overrides: Mapping[str, Any]
    config: Mapping[str, Any]
    all_scores: Mapping[int, Mapping[str, float]]
    failures: Mapping[int, str]
    seconds: list[float]


@dataclass(frozen=True)
class Ablation:
    """The results of all variants; the first one is what the others are compared with.

    Attributes:
        variants: By name.
        score: The name of the score that counts.
        part: Which photos were scored.
        timed: What was timed, in words.
    """

    variants: Mapping[str, Result]
    score: str
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

    @property
    def scores(self) -> dict[str, dict[int, float]]:
        """The score that counts, by variant and seed."""
        return {
            name: {seed: each[self.score] for seed, each in result.all_scores.items()}
            for name, result in self.variants.items()
        }

    def step(self, name: str) -> float | None:
        """The median seconds of a variant's step."""
        seconds = self.variants[name].seconds
        return median(seconds) if seconds else None

    def table(self) -> str:
        """The table in Markdown, with what its numbers mean below."""
        base = self.step(self.first)
        head = ("variant", f"{self.score}, %", "SD", "n", "difference", "SE", "step")
        rows = [head, ("---",) * len(head)]
        for name, found in self.record()["variants"].items():
            relative = found["step_relative"]
            rows.append(
                (
                    name,
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
            f"Score after the last epoch, scored photos: {self.part}; mean and SD over the seeds {seeds}.",
            f"Difference: to {self.first}, in points, paired by seed; SE: its SD divided by the root of n.",
        ]
        if base is not None:
            lines.append(f"Step: relative to {self.first}, {1000 * base:.1f} ms; {self.timed}.")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything, as plain values."""
        differences, base = paired_differences(self.scores), self.step(self.first)
        variants = {}
        for name, result in self.variants.items():
            scores, difference, step = self.scores[name], differences.get(name), self.step(name)
            found = estimate(scores)
            variants[name] = {
                "overrides": result.overrides,
                "config": result.config,
                "scores": scores,
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
            "score": self.score,
            "part": self.part,
            "timed": self.timed,
            "variants": variants,
            "versions": {"dca_triton": __version__, "torch": torch.__version__, "timm": timm.__version__},
        }

    def write(self, folder: Path) -> None:
        """Write ablation.json and ablation.png."""
        with atomic_write(folder / "ablation.json", "w") as stream:
            stream.write(json.dumps(self.record(), indent=2, default=str) + "\n")
        found = {name: estimate(scores) for name, scores in self.scores.items()}
        comparison(
            {name: list(scores.values()) for name, scores in self.scores.items()},
            {name: (each.mean, each.deviation) for name, each in found.items() if each},
            {name: (e.mean, e.error) for name, e in paired_differences(self.scores).items() if e},
            folder / "ablation.png",
            f"{self.score}, %",
        )


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"
