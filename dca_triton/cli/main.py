"""The command line, dca-triton: train, evaluate, embed, visualize, rank, export, ablate and others."""

import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> None:
    """Run a command; bad input ends with one sentence and exit status 1, Ctrl-C with one line and 130."""
    try:
        from .parser import run_command  # Ctrl-C may come during imports, too

        run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        _interrupted()


def _interrupted() -> NoReturn:
    print("dca-triton: interrupted", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    main()
