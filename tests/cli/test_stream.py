"""`dca-triton embed --photos - --file -`: as names come, in their order, with unreadable photos reported."""

import fcntl
import io
import json
import os
import signal
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import described, small_model

from dca_triton.cli import stream
from dca_triton.cli.main import main
from dca_triton.evaluation import load_embeddings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, and six photos."""
    folder = tmp_path_factory.mktemp("stream")
    described(small_model(task_type="reid")).save_pretrained(folder / "run")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0)
    for i in range(6):
        pixels = noise.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    return folder / "run"


@pytest.mark.parametrize("options", [[], ["--flip=true", "--data.batch_size=1"]])
def test_the_same_as_of_a_folder(
    options: list[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = run.with_name("photos")
    main(
        [
            "embed",
            f"--run={run}",
            f"--photos={photos}",
            f"--file={tmp_path / 'a.npz'}",
            "--data.workers=0",
            *options,
        ]
    )
    folder = load_embeddings(tmp_path / "a.npz")
    names = "\n".join(reversed(folder.paths)) + "\r\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    capsys.readouterr()
    main(["embed", f"--run={run}", "--photos=-", "--file=-", *options])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["photo"] for line in found] == [*reversed(folder.paths)]
    features = torch.tensor([line["embedding"] for line in found])
    torch.testing.assert_close(features, folder.features.flip(0), rtol=1e-5, atol=1e-6)


def test_unreadable_photos_are_reported_and_counted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run.with_name("photos") / "0.png"
    names = os.fsencode(f"{good}\nnowhere-\udcff.jpg\n{run / 'config.json'}\n{good}")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    with pytest.raises(SystemExit, match="got 2 of 4 that cannot") as ended:
        main(["embed", f"--run={run}", "--photos=-", "--file=-"])
    assert ended.value.code not in (None, 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["photo"] for line in lines] == os.fsdecode(names).split("\n")
    assert ["embedding" in line for line in lines] == [True, False, False, True]
    assert "nowhere" in lines[1]["error"] and "is not one of" in lines[2]["error"]
    assert lines[0]["embedding"] == pytest.approx(lines[3]["embedding"], abs=1e-5)


def test_features_that_json_cannot_hold_are_reported(run: Path) -> None:
    model = small_model(task_type="reid").eval()
    with torch.no_grad():
        model.backbone.model.norm.weight.fill_(float("nan"))
    photo = str(run.with_name("photos") / "0.png")
    [answer] = stream._answers(model, lambda _: torch.zeros(3, 16, 16), [photo])
    assert "must be finite" in answer["error"] and "embedding" not in answer


def test_a_batch_takes_what_has_arrived() -> None:
    end, start = os.pipe()
    with open(end, "rb") as names, open(start, "wb", buffering=0) as producer:
        batches = stream._arrived(names, 2)
        producer.write(b"a\n")
        assert next(batches) == ["a"]  # while the producer is silent
        producer.write(b"b\nc\r\n\nd\ne")
        assert [next(batches), next(batches)] == [["b", "c"], ["d"]]
        producer.write(b" f\n")
        assert next(batches) == ["e f"]
        producer.write(b"last")
        producer.close()
        assert list(batches) == [["last"]]


def test_a_slow_producer_gets_its_answers_and_ctrl_c_leaves_whole_lines(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command runs in this thread, which Ctrl-C interrupts, between two pipes; their user in another."""
    photo, command = f"{run.with_name('photos') / '1.png'}", threading.get_ident()
    names, producer = os.pipe()
    consumer, answers = os.pipe()

    def user() -> list[str]:
        with open(producer, "wb", buffering=0) as to, open(consumer, "rb") as of:
            for name in (photo, "nowhere.jpg"):
                to.write(f"{name}\n".encode())
                assert json.loads(of.readline())["photo"] == name
            to.write(f"{photo}\n".encode() * 100)
            while waiting(of) < 60_000:  # until the pipe is full, in the middle of a batch
                time.sleep(0.05)
            signal.pthread_kill(command, signal.SIGINT)
            time.sleep(0.2)
            return of.read().decode().splitlines()

    with ThreadPoolExecutor(1) as pool, open(names) as stdin:
        found = pool.submit(user)
        with open(answers, "w") as stdout, pytest.raises(SystemExit) as ended, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            main(["embed", f"--run={run}", "--photos=-", "--file=-", "--data.batch_size=100"])
        lines = found.result()
    assert ended.value.code == 130
    assert {json.loads(line)["photo"] for line in lines} == {photo} and len(lines) == 100
    assert capfd.readouterr().err == "dca-triton: interrupted\n"


def waiting(stream: IO[bytes]) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(stream, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_stream_needs_both_ends(run: Path, tmp_path: Path) -> None:
    for options in (["--photos=-", f"--file={tmp_path / 'a.npz'}"], [f"--photos={tmp_path}", "--file=-"]):
        with pytest.raises(SystemExit, match="--file must be - with --photos -, and only then"):
            main(["embed", f"--run={run}", *options])
    assert not list(tmp_path.iterdir())
