"""What an ablation runs: variants as overrides of one config, each a training run in a folder of its own."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ..arguments import raise_faults, shown
from .config import CONFIG, config_text, deciding, write_config
from .options import Experiment
from .recipe import check_texts, read_config
from .values import experiment_of

Overrides = Mapping[str, Any]

ALL = ["sa", "glca", "pwca"]
DEFAULT_VARIANTS: dict[str, Overrides] = {
    "sa": {"model": {"branches": ["sa"]}},
    "sa+glca": {"model": {"branches": ["sa", "glca"]}},
    "sa+pwca": {"model": {"branches": ["sa", "pwca"]}},
    "all": {"model": {"branches": ALL}},
    "all, readout both": {"model": {"branches": ALL, "sa_readout": "both", "glca_readout": "both"}},
}
OWN_OPTIONS = ("seeds", "variants", "score", "output")  # of the ablation, not of a run
NOT_OVERRIDDEN = ("config", "output", "resume", "seed")
SAME_PHOTOS = ("data.name", "data.root", "data.holdout")
NAME = re.compile(r"(?!\.)[^/\\:*?\"<>|\x00-\x1f\x7f\ud800-\udfff]{1,100}(?<![. ])")


@dataclass(frozen=True)
class PlannedRun:
    """One training run.

    Attributes:
        variant: The name of its variant.
        experiment: Its options; `output` is its folder.
        config: The text of its config.yaml.
    """

    variant: str
    experiment: Experiment
    config: str

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.experiment.seed

    def save_config(self) -> None:
        """Write its config.yaml."""
        write_config(self.experiment.output, self.config)

    def changes(self) -> list[str]:
        """How its options differ from those of the run that its folder holds, a sentence each."""
        from ..run_folder import RunFolder
        from ..training.run_settings import differences

        file = self.experiment.output / CONFIG
        if not file.is_file():
            return ["checkpoints must have config.yaml beside them"] if RunFolder(file.parent).paths() else []
        before, now = deciding(read_config(file, "--output")), deciding(yaml.safe_load(self.config))
        return list(differences("", before, now))


class Plan:
    """The runs of an ablation, made by the parser of training runs.

    Args:
        parser: Of `dca-triton train`. Its `at` names the variant in its errors.
        given: The options of `dca-triton ablate`.
    """

    def __init__(self, parser: Any, given: Namespace) -> None:
        self.parser = parser
        self.output: Path = given["output"] or Path("runs/ablation")
        self.base = given.clone()
        for name in OWN_OPTIONS:
            self.base.pop(name, None)
        self.base["resume"] = None

    def runs(self, variants: Mapping[str, Overrides], seeds: int) -> list[PlannedRun]:
        """Return the runs of all variants: first those of the first seed, and so on.

        Raises:
            ValueError: Values outside their range, or overrides that no variant may have.
            SystemExit: Unknown options or values of another type, as on the command line.
        """
        first = self.base["seed"]
        return [
            self._run(name, overrides, seed)
            for seed in range(first, first + seeds)
            for name, overrides in variants.items()
        ]

    def _run(self, variant: str, overrides: Overrides, seed: int) -> PlannedRun:
        raise_faults(self._faults(variant, overrides))
        with self.parser.at(f"variant {variant!r}: "):
            options = self.parser.parse_object(dict(overrides), namespace=self.base.clone())
        raise_faults(
            f"variant {variant!r} must keep {name}, so that all are scored on the same photos, "
            f"got {shown(options[name])}"
            for name in SAME_PHOTOS
            if options[name] != self.base[name]
        )
        options["seed"], options["output"] = seed, self.output / variant / f"seed{seed}"
        try:
            experiment = experiment_of(options.as_dict())
        except ValueError as error:
            raise ValueError(f"variant {variant!r}: {error}") from error
        return PlannedRun(variant, experiment, config_text(self.parser, options, experiment, None))

    @staticmethod
    def _faults(variant: str, overrides: Overrides) -> Iterator[str]:
        if not NAME.fullmatch(variant):
            yield f"a variant's name must be one that a folder can have, got {variant!r}"
        if taken := [name for name in NOT_OVERRIDDEN if name in overrides]:
            yield (
                f"variant {variant!r} must not override {', '.join(NOT_OVERRIDDEN)}, got {', '.join(taken)}"
            )


def read_variants(file: Path) -> dict[str, Overrides]:
    """Read the variants of a YAML file: their names, and their overrides in the structure of a config.

    Raises:
        ValueError: There is no such file, or it holds no such mapping.
    """
    content = read_config(file, "--variants")
    check_texts(content, str(file))
    if not content:
        raise ValueError(f"--variants must hold at least one variant, got {str(file)!r} without any")
    raise_faults(
        f"variant {name!r} of --variants must be a mapping of options, got {shown(overrides)}"
        for name, overrides in content.items()
        if not isinstance(overrides, dict | None)
    )
    return {name: overrides or {} for name, overrides in content.items()}
