"""The command `ablate`: variants of one experiment, trained over several seeds and compared."""

from pathlib import Path

from .ablate_plan import DEFAULT_VARIANTS, Plan, read_variants

TURNS = 20  # steps of each variant that are timed


def ablate(plan: Plan, seeds: int = 3, variants: Path | None = None, score: str | None = None) -> None:
    """Train variants of an experiment over several seeds and compare them in a table, JSON and a picture.

    To continue after a stop, run the same command again.

    Args:
        plan: The options of the config.
        seeds: Runs of each variant, >= 1, with the seeds `seed`, `seed` + 1, ...
        variants: A YAML file of names and the options that each of them changes; by default sa, sa+glca,
            sa+pwca, all, and all with both readouts. The others are compared with the first.
        score: The score to compare; by default sum_top1 for categories and mAP for identities.
    """
    from ..arguments import integer, raise_faults, violations

    raise_faults(violations({"--seeds": seeds}, {"--seeds": integer(1)}))
    overrides = DEFAULT_VARIANTS if variants is None else read_variants(variants)
    runs = plan.runs(overrides, seeds)

    import sys

    from .ablate_runs import check, results, timing, train
    from .ablate_table import Ablation

    checked = check(runs, score)
    try:
        failures = train(runs, checked.done)
    except KeyboardInterrupt:
        print(f"{len(checked.done)} of {len(runs)} runs are done; the same command goes on.", file=sys.stderr)
        raise
    failed = "; ".join(f"{name}, seed {seed}: {reason}" for (name, seed), reason in failures.items())
    if not checked.done:
        raise RuntimeError(f"no run ended well ({failed})")
    timed = timing(runs, TURNS)
    found = results(runs, checked.done, failures, overrides, timed)
    ablation = Ablation(found, checked.score, checked.part, timed.text)
    ablation.write(plan.output)
    print(ablation.table())
    print(f"\nablation.json, ablation.png and a folder for each run are in {plan.output}.")
    if failed:
        raise RuntimeError(
            f"{len(failures)} of {len(runs)} runs failed; the same command tries again ({failed})"
        )
