"""`dca-triton rank`: the rankings and confusions of a trained model, and its answers to bad input."""

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

from dca_triton.cli.main import main
from dca_triton.cli.rank import rank

SMALL = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
SMALL += ["--model.timm={depth: 1}"]
DATA = ["--data.size=[32, 32]", "--data.batch_size=40", "--data.workers=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for task in ("fgvc", "reid"):
        options = [f"--data.name=orl-{task}", *DATA, "--data.resize=32", "--trainer.progress=false"]
        main(["train", *SMALL, *options, "--epochs=1", f"--output={folder / task}"])
    return folder


def test_rankings_of_a_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rows=3", "--photos=4", f"--file={tmp_path / 'r.html'}"]
    capsys.readouterr()
    main(["rank", f"--run={runs / 'reid'}", *options, f"--curve={tmp_path / 'c.png'}"])
    said = capsys.readouterr().out
    assert "3 of 100 queries; query and gallery of orl-reid: mAP " in said
    assert "100 of 100 queries have a match" in said
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('class="row"') == 3 and page.count('class="query"') == 3
    assert page.count('class="right"') + page.count('class="wrong"') == 12
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    queries = [caption for caption in captions if "AP" in caption]
    assert [re.findall(r"id (\d+), camera (\d+)", q)[0] for q in queries] == [
        ("31", "1"),
        ("34", "4"),
        ("37", "7"),
    ]  # evenly over the 100 queries
    with Image.open(tmp_path / "c.png") as curve:
        assert curve.size == (576, 456)


def test_worst_queries_first(runs: Path, tmp_path: Path) -> None:
    main(["rank", f"--run={runs / 'reid'}", "--queries=worst", "--rows=5", f"--file={tmp_path / 'r.html'}"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    precisions = [int(p) for p in re.findall(r"<figcaption>[^<]*AP (\d+) %", page)]
    assert len(precisions) == 5 and precisions == sorted(precisions)


def test_confusions_of_a_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["rank", f"--run={runs / 'fgvc'}", "--rows=2", "--flip=true", f"--file={tmp_path / 'f.html'}"])
    assert "test of orl-fgvc: top-1 " in capsys.readouterr().out
    page = (tmp_path / "f.html").read_text(encoding="utf-8")
    assert page.count('class="row"') == 2 and "taken for" in page


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rows=0"], "--rows must be an integer >= 1, got 0"),
        (["--photos=1"], "--photos must be an integer >= 2, got 1"),
        (["--queries=best"], "--queries must be 'spread' or 'worst', got best"),
        (["--curve=c.html"], "--curve must end in .png, got 'c.html'"),
        (["--metric=cosine", "--curve=c.png"], "--metric and --curve must not be given for categories"),
        (["--alpha=1"], "--expand must be given with --alpha"),
        (["--rows=33"], "--rows must be at most 32 for a .png (any number for .html), got 33"),
        (["--photos=99"], "--photos must be at most 32 for a .png (any number for .html), got 99"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], sentence: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        main(["rank", f"--run={runs / 'fgvc'}", "--file=a.png", *options])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=r"--file must end in \.png or \.html"):
        main(["rank", f"--run={runs / 'fgvc'}", "--file=a.gif"])


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rank", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in set(inspect.signature(rank).parameters) - {"selection"}:
        assert f"--{name}" in text
