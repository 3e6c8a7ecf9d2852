"""From the options of a command line to an experiment or a trained model, checked by tables of rules."""

import os
from argparse import ArgumentError
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..arguments import Rule, choice, integer, raise_faults, violations
from .config import CONFIG, MODE, recorded, run_of
from .options import VALUE_RULES, DataOptions, Experiment, Selection
from .recipe import read_config


def experiment_of(values: Mapping[str, Any]) -> Experiment:
    """A training run of the options of its config; paths become absolute, so that any folder can go on.

    Raises:
        ValueError: Values outside their range, or a run's config.yaml with neither --resume nor --output.
    """
    data, model, trainer = dict(values["data"]), dict(values["model"]), dict(values["trainer"])
    data["root"] = _absolute(data["root"])
    output = values["output"]
    runs = [run for file in values.get("config") or [] if (run := run_of(Path(file))) is not None]
    if output is None and runs:
        if values["resume"] is None:
            raise ValueError(
                f"--output must be given for a new run by the config of the run {runs[-1]}, got none "
                "(--resume=auto goes on with that run)"
            )
        output = runs[-1]
    faults = violations({"--epochs": values["epochs"]}, {"--epochs": integer(1)})
    faults += violations({"--seed": values["seed"]}, {"--seed": VALUE_RULES["seed"]})
    for section, rules in _rules().items():
        given = values[section]
        known = {f"--{section}.{name}": rule for name, rule in rules.items() if name in given}
        faults += violations({f"--{section}.{name}": value for name, value in given.items()}, known)
    raise_faults(faults)
    return Experiment(
        model=_flat(model),
        data=DataOptions(**data, seed=values["seed"]),
        trainer=trainer,
        pairs=dict(values["pairs"]),
        epochs=values["epochs"],
        output=output or Path("runs/train"),
        transfer=_absolute(values["transfer"]),
        seed=values["seed"],
    )


def selection_of(values: Mapping[str, Any]) -> Selection:
    """The trained model that the options choose.

    Raises:
        ValueError: Values outside their range.
    """
    run = values.get("run")
    file = run / CONFIG if run is not None else None
    known: Mapping[str, Any] = {}
    if file is not None and file.is_file():
        parser = ArgumentParser(exit_on_error=False, parser_mode=MODE)
        parser.add_argument("--model", type=dict[str, Any], default={})
        parser.add_class_arguments(DataOptions, "data", skip={"name"})
        parser.add_argument("--data.name", type=str | None, default=None)
        try:
            known = parser.parse_object(recorded(read_config(file)), defaults=False).as_dict()
        except ArgumentError as error:
            raise ValueError(f"{file} must hold a training run's options, got others ({error})") from error
    data = {name: value for name, value in (values.get("data") or {}).items() if value is not None}
    rules = {f"--data.{name}": rule for name, rule in _rules()["data"].items() if name in data}
    raise_faults(violations({f"--data.{name}": value for name, value in data.items()}, rules))
    return Selection(
        run=run,
        weights=values.get("weights"),
        model=_flat(values.get("model"), check=True),
        data=data,
        recorded_model=_flat(known.get("model")),
        recorded_data=known.get("data") or {},
    )


def _rules() -> dict[str, dict[str, Rule]]:
    """The rules of the library by the section of options."""
    from ..data.splits import INSTALLED, READERS
    from ..model.checks import VALUE_RULES as MODEL_RULES
    from ..training.checks import ARGUMENT_RULES

    names = choice(*READERS, *INSTALLED)[0], f"one of {', '.join([*READERS, *INSTALLED])}"
    return {"data": {**VALUE_RULES, "name": names}, "model": MODEL_RULES, "trainer": ARGUMENT_RULES}


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path.expanduser()))


def _flat(model: Mapping[str, Any] | None, check: bool = False) -> dict[str, Any]:
    """Arguments of the model with those for timm among them; checked by the rules on demand.

    Raises:
        ValueError: `timm` is not a mapping, or holds arguments of the model itself.
    """
    from ..model import DualAttentionModel

    options = dict(model or {})
    timm = options.pop("timm", None) or {}
    if not isinstance(timm, Mapping):
        raise ValueError(f"--model.timm must be a mapping, got {timm!r}")
    own = {"cls", "model_name", *signature(DualAttentionModel.__init__).parameters}
    if taken := sorted(own & set(timm)):
        raise ValueError(
            f"--model.timm must hold arguments that only timm.create_model takes, got {', '.join(taken)}"
        )
    if check:
        rules = {f"--model.{name}": rule for name, rule in _rules()["model"].items() if name in options}
        raise_faults(violations({f"--model.{name}": value for name, value in options.items()}, rules))
    return options | dict(timm)
