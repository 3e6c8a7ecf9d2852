"""What training sees is what evaluate and embed see: crop, mean and deviation follow the run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.cli.main import main
from dca_triton.data import fgvc_test

SMALL = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
SMALL += ["--model.timm={depth: 1}"]
SIZES = ["--data.size=[32, 32]", "--data.resize=48", "--data.batch_size=6", "--data.workers=0"]
OWN = ["--data.test_crop=center", "--data.mean=[0.5, 0.4, 0.3]", "--data.std=[0.5, 0.5, 0.25]"]
TRAINER = ["--trainer.progress=false", "--epochs=1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` has the defaults, `own` its own preprocessing."""
    folder = tmp_path_factory.mktemp("runs")
    data = ["--data.name=folder", f"--data.root={photos}", *SIZES]
    for name, options in (("plain", []), ("own", OWN)):
        main(["train", *SMALL, *data, *TRAINER, *options, f"--output={folder / name}"])
    return folder


def features(file: Path, *options: str) -> np.ndarray:
    main(["embed", f"--file={file}", "--part=test", *options])
    return np.load(file)["features"]


def test_commands_use_the_preprocessing_of_the_run(runs: Path, photos: Path, tmp_path: Path) -> None:
    run, file = runs / "own", tmp_path / "a.npz"
    described = load_checkpoint(run / "checkpoint.pt")["description"]
    assert described["test_crop"] == "center" and described["mean"] == [0.5, 0.4, 0.3]
    assert "test_crop" not in load_checkpoint(runs / "plain/checkpoint.pt")["description"]
    own = features(file, f"--run={run}")
    np.testing.assert_array_equal(features(file, f"--run={run}", *OWN), own)
    assert not np.array_equal(features(file, f"--run={run}", "--data.resize=40"), own)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    main(["evaluate", f"--run={run}"])
    found = json.loads((run / "evaluation.json").read_text())
    assert found["sum_top1"] == last["sum_top1"] and "changed" not in found
    main(["evaluate", f"--run={run}", "--data.test_crop=resize"])
    found = json.loads((run / "evaluation.json").read_text())
    assert found["changed"] == {"data": {"test_crop": "resize"}}


def test_a_checkpoint_that_does_not_describe_itself_takes_it_from_the_config(
    runs: Path, tmp_path: Path
) -> None:
    run, file = runs / "own", tmp_path / "a.npz"
    own = features(file, f"--run={run}")
    state = load_checkpoint(run / "checkpoint.pt")
    whole = (run / "checkpoint.pt").read_bytes()
    del state["description"], state["model_arguments"]
    save_checkpoint(run / "checkpoint.pt", state)
    np.testing.assert_array_equal(features(file, f"--run={run}"), own)
    assert not np.array_equal(features(file, f"--run={run}", "--data.mean=[0.1, 0.1, 0.1]"), own)
    (run / "checkpoint.pt").write_bytes(whole)


def test_a_run_older_than_the_option_goes_on(runs: Path, photos: Path, tmp_path: Path) -> None:
    """Its description has no test_crop; another crop than its own is refused, and so is another mean."""
    again = ["train", f"--config={runs / 'plain/config.yaml'}", "--epochs=2", "--resume=auto"]
    for option in ("--data.test_crop=center", "--data.mean=[0.4, 0.5, 0.5]"):
        with pytest.raises(SystemExit, match=option.partition("=")[0].removeprefix("--data.")):
            main([*again, option])
    main(again)
    assert len((runs / "plain/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--data.mean=[0.4, 0.5, 0.5]"],
            "--data.mean must be the run's, (0.5, 0.5, 0.5), got (0.4, 0.5, 0.5)",
        ),
        (["--data.std=[0.4, 0.5, 0.5]"], "--data.std must be the run's"),
        (
            ["--data.std=[0.5, 0, 0.5]"],
            "--data.std must be 3 finite numbers > 0 or None, got (0.5, 0.0, 0.5)",
        ),
        (["--data.mean=[0.5, 0.5]"], "--data.mean must be a list [a number, a number, a number], got"),
        (
            ["--data.mean=[.nan, 0.5, 0.5]"],
            "--data.mean must be 3 finite numbers or None, got (nan, 0.5, 0.5)",
        ),
        (["--data.test_crop=top"], "--data.test_crop must be 'center' or 'resize', got top"),
        (["--data.test_crop=center", "--data.resize=31"], "--data.resize must be at least size, 32, got 31"),
    ],
)
def test_options_that_do_not_fit(options: list[str], sentence: str, runs: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        main(["evaluate", f"--run={runs / 'plain'}", *options])


def test_identities_are_never_cropped() -> None:
    data = ["--data.name=orl-reid", "--data.size=[32, 32]", "--data.batch_size=8", "--data.test_crop=center"]
    with pytest.raises(SystemExit, match=r"--data\.test_crop must be 'resize' for identities, got 'center'"):
        main(["train", *SMALL, *data])


def test_flip_averaging_is_off_unless_asked_for(runs: Path, photos: Path, tmp_path: Path) -> None:
    run, file = f"--run={runs / 'own'}", tmp_path / "a.npz"
    plain, flipped = features(file, run, "--flip=false"), features(file, run, "--flip=true")
    np.testing.assert_array_equal(features(file, run), plain)
    assert not np.array_equal(flipped, plain)
    for path in (mirror := tmp_path / "mirror").joinpath("x"), mirror / "y":
        path.mkdir(parents=True)
    for name, path in (("a", mirror / "x"), ("b", mirror / "y")):
        for photo in sorted((photos / "test" / name).iterdir()):
            with Image.open(photo) as image:
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path / photo.name)
    main(["embed", run, f"--photos={mirror}", f"--file={file}"])
    np.testing.assert_allclose(flipped, (plain + np.load(file)["features"]) / 2, atol=1e-4)
    scores = tmp_path / "scores.json"
    for options, recorded in (([], None), (["--flip=true"], True)):
        main(["evaluate", run, f"--file={scores}", *options])
        assert json.loads(scores.read_text()).get("flip") == recorded


def test_query_expansion_is_for_identities(runs: Path) -> None:
    for options, sentence in (
        (["--expand=5"], r"--expand must not be given for categories, got \{'expand': 5\}"),
        (["--alpha=1"], "--expand must be given with --alpha, got none"),
        (["--expand=0", "--alpha=-1"], r"--expand must be an integer >= 1 .*--alpha must be a number >= 0"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["evaluate", f"--run={runs / 'own'}", *options])


def test_scores_record_how_queries_were_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(1)
    for part, count in (("train", 2), ("query", 3), ("gallery", 4)):
        for person in range(4):
            (Path("people") / part / str(person)).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path("people") / part / str(person) / f"{i}.png")
    data = ["--data.name=folder", "--data.root=people", "--data.size=[32, 32]", "--data.batch_size=8"]
    main(["train", *SMALL, *data, "--data.photos=2", "--data.workers=0", *TRAINER, "--output=run"])
    found = []
    for options in ([], ["--expand=4"], ["--expand=4", "--alpha=9000"]):
        main(["evaluate", "--run=run", *options])
        found.append(json.loads(Path("run/evaluation.json").read_text()))
    plain, expanded, vanishing = (scores["mAP"] for scores in found)
    assert plain == vanishing != expanded  # cos ** 9000 leaves the query alone
    assert [scores.get("expand") for scores in found] == [None, 4, 4]
    assert [scores.get("alpha") for scores in found] == [None, None, 9000]


def test_pictures_show_what_evaluation_sees(
    runs: Path, photos: Path, tmp_path: Path, figures: list[Figure]
) -> None:
    photo = photos / "test/a/0.png"
    for name in ("own", "plain"):
        main(["visualize", f"--run={runs / name}", f"--photos={photo}", f"--file={tmp_path / 'a.png'}"])
    with Image.open(photo) as image:
        expected = [fgvc_test(32, (0, 0, 0), (1, 1, 1), resize)(image) for resize in (48, None)]
    for figure, pixels in zip(figures, expected, strict=True):
        shown = torch.from_numpy(np.asarray(figure.axes[0].images[0].get_array())).permute(2, 0, 1)
        torch.testing.assert_close(shown, pixels, rtol=0, atol=0)
