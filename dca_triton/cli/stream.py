"""Embeddings of photos whose names come on standard input: a line of JSON for each, as soon as known."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..data import read_image
from ..model import DualAttentionModel

CHUNK = 2**16  # bytes; as many as a pipe holds


def embed_stream(
    model: DualAttentionModel, transform: Callable[[Any], Tensor], names: BinaryIO, most: int
) -> tuple[int, int]:
    """Print {"photo", "embedding"} for each named photo, or {"photo", "error"} if it has no embedding.

    The order is that of the names. A batch takes the names that have arrived, at most `most`, and waits for
    no others.

    Returns:
        How many photos have no embedding, and how many were named.

    Raises:
        BrokenPipeError: Nobody reads what is printed.
    """
    failed = named = 0
    for photos in _arrived(names, most):
        answers = _answers(model, transform, photos)
        failed += sum("error" in answer for answer in answers)
        named += len(answers)
        _print("".join(json.dumps(answer) + "\n" for answer in answers))
    return failed, named


def _arrived(names: BinaryIO, most: int) -> Iterator[list[str]]:
    """Lists of at most `most` lines; none waits for more lines than there are."""
    rest = b""
    read = names.read1  # type: ignore[attr-defined]  # waits for the first byte alone
    while chunk := read(CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        texts = [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
        yield from (texts[i : i + most] for i in range(0, len(texts), most))
    if rest.strip():
        yield [os.fsdecode(rest)]


@torch.no_grad()
def _answers(
    model: DualAttentionModel, transform: Callable[[Any], Tensor], photos: Sequence[str]
) -> list[dict[str, Any]]:
    images = [_image(photo, transform) for photo in photos]
    readable = [image for image in images if isinstance(image, Tensor)]
    device = next(model.parameters()).device
    rows = iter(model.extract_features(torch.stack(readable).to(device)).float().cpu() if readable else ())
    answers: list[dict[str, Any]] = []
    for photo, image in zip(photos, images, strict=True):
        found = next(rows) if isinstance(image, Tensor) else image
        if isinstance(found, Tensor) and not found.isfinite().all():  # JSON has no such numbers
            found = f"features of {photo} must be finite, got NaN or infinity"
        answers.append(
            {"photo": photo, "error": found}
            if isinstance(found, str)
            else {"photo": photo, "embedding": found.tolist()}
        )
    return answers


def _image(photo: str, transform: Callable[[Any], Tensor]) -> Tensor | str:
    """The photo as the model takes it, or why it cannot be read."""
    try:
        return transform(read_image(Path(photo)))
    except ValueError as error:
        return str(error)


def _print(text: str) -> None:
    """Print whole lines at once."""
    try:
        with _no_interrupt():
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes what is left when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C takes effect after the block, where the system can wait with it (on POSIX)."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
