"""Types of command-line arguments, which refuse bad values before anything is measured."""

import argparse
import re
from pathlib import Path
from tempfile import TemporaryFile

import torch


def positive(text: str) -> int:
    """An integer >= 1."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"must be a regular expression, got {text!r} ({error})") from None


def device(text: str) -> torch.device:
    """A CPU, or a GPU of this machine."""
    gpus = torch.cuda.device_count()
    allowed = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if text not in allowed:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(allowed)} on this machine, got {text!r}")
    return torch.device(text)


def folder(text: str) -> Path:
    """A folder that can be written to; it is created."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        message = f"must be a folder that can be written to, got {text!r} ({error})"
        raise argparse.ArgumentTypeError(message) from None
    return path
