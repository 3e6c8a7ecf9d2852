"""The command line: dca-triton demo | train | evaluate | tune | info."""

import sys
from pathlib import Path

import torch
from jsonargparse import auto_cli

from . import demo as faces
from .info import info as describe


def demo(
    output: Path = Path("runs/demo"), fgvc_epochs: int = 120, reid_epochs: int = 50, seed: int = 0
) -> None:
    """Train a small DCAL model on the ORL faces, as categorisation and as re-identification.

    Args:
        output: Folder of the metrics, checkpoints and pictures.
        fgvc_epochs: Epochs of the categorisation run.
        reid_epochs: Epochs of the re-identification run.
        seed: Of initial weights, batches, pairs and augmentation.
    """
    fgvc = faces.train_fgvc(output / "fgvc", fgvc_epochs, seed=seed)
    reid = faces.train_reid(output / "reid", reid_epochs, seed=seed)
    print(faces.table(fgvc, reid))
    print(f"Metrics, checkpoints and pictures (training.png, rollout.png) are in {output}.")


def info() -> None:
    """Print versions, device, backend, the chosen kernel configurations and every reason for a fallback."""
    print(describe())


def tune(target: str | None = None, output: Path | None = None) -> None:
    """Measure the kernels' configurations on this GPU and write its table.

    Args:
        target: Instead of measuring, print the static model's ranking for a chip, e.g. sm_90; needs no GPU.
        output: The table to write; by default the one that this device looks up.
    """
    from . import tuner

    if target is not None:
        print(tuner.ranking_table(tuner.rank(target)))
        return
    if not torch.cuda.is_available():
        raise RuntimeError(
            "this machine has no GPU to tune on; --target sm_90 prints the static model's ranking"
        )
    print(tuner.table(tuner.tune(output=output)))


def main() -> None:
    """Run a command; bad input ends with one sentence and exit status 1."""
    try:
        auto_cli([demo, info, tune], prog="dca-triton")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"dca-triton: {error}")


if __name__ == "__main__":
    main()
