"""Trained models used elsewhere: every way of training, another folder, no training photos, no config."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dca_triton import DualAttentionModel
from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.cli.main import main

SMALL = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
SMALL += ["--model.timm={depth: 1}"]
SIZES = ["--data.size=[32, 32]", "--data.resize=36", "--data.batch_size=6", "--data.workers=0"]
QUIET = ["--trainer.progress=false", "--trainer.optimizer=adamw", "--trainer.lr=3e-3"]


def make_photos(root: Path, classes: tuple[str, ...] = ("dark", "mid", "light")) -> Path:
    """Classes of dark, middling and light noise, four photos to train and two to test."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(label * 80, label * 80 + 80, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def data(root: Path) -> list[str]:
    return ["--data.name=folder", f"--data.root={root}", *SIZES, *QUIET]


def train(photos: Path, *options: str) -> None:
    main(["train", *SMALL, *data(photos), *options])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "tree")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that distinguishes the three classes."""
    output = tmp_path_factory.mktemp("trained") / "run"
    train(photos, "--epochs=12", f"--output={output}")
    return output


@pytest.fixture(scope="module")
def begun(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    output = tmp_path_factory.mktemp("begun") / "run"
    train(photos, "--epochs=1", f"--output={output}")
    return output


@pytest.fixture(scope="module")
def averaged(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with averaged weights, far from the last ones, and of its export."""
    folder = tmp_path_factory.mktemp("averaged")
    train(photos, "--epochs=1", "--trainer.ema_decay=0.5", "--trainer.lr=0.1", f"--output={folder / 'run'}")
    main(["export", str(folder / "run"), str(folder / "exported")])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "moved" / "run"))


def fresh(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    shutil.copytree(begun, output)


def resumed(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    shutil.copytree(begun, output)
    train(photos, "--epochs=2", f"--output={output}", "--resume=auto")


def resumed_by_its_config(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    shutil.copytree(begun, output)
    main(["train", f"--config={output}/config.yaml", "--epochs=2", "--resume=auto"])


def resumed_from_a_file(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    first = shutil.copytree(begun, output.with_name("first"))
    train(photos, "--epochs=2", f"--output={output}", f"--resume={first / 'checkpoint.pt'}")


def transferred(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    train(photos, "--epochs=1", f"--output={output}", f"--transfer={trained}")


def by_a_recipe(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    quick = ["--epochs=1", "--trainer.warmup_epochs=0"]
    main(["train", "--config=fgvc", *SMALL, *data(photos), *quick, f"--output={output}"])


def by_a_file(photos: Path, trained: Path, begun: Path, output: Path) -> None:
    file = output.with_name("mine.yaml")
    model = {"backbone_name": "test_vit", "layout": "paper", "pretrained": False, "timm": {"depth": 2}}
    own = {"name": "folder", "root": str(photos), "size": [32, 32], "resize": 36, "batch_size": 6}
    trainer = {"progress": False, "ema_decay": 0.5}
    file.write_text(yaml.safe_dump({"model": model, "data": own | {"workers": 0}, "trainer": trainer}))
    main(["train", f"--config={file}", "--epochs=1", f"--output={output}"])


WAYS = [fresh, resumed, resumed_by_its_config, resumed_from_a_file, transferred, by_a_recipe, by_a_file]


@pytest.mark.parametrize("way", WAYS)
def test_every_command_works_on_every_way_of_training(
    way: Callable[[Path, Path, Path, Path], None],
    photos: Path,
    trained: Path,
    begun: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the folder has moved and from another working directory, by --run and by --config."""
    (tmp_path / "old").mkdir()
    way(photos, trained, begun, tmp_path / "old" / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "old").rename(tmp_path / "new")
    run = tmp_path / "new" / "run"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for by in (f"--run={run}", f"--config={run}/config.yaml", "--run=../new/run"):
        main(["evaluate", by])
        found = json.loads((run / "evaluation.json").read_text())
        assert found["checkpoint"] == "checkpoint.pt"
        assert found["sum_top1"] == last["sum_top1"] and found["sa_top5"] == last["sa_top5"]
        (run / "evaluation.json").unlink()
    main(["embed", f"--run={run}", "--part=train", "--file=train.npz"])
    main(["embed", f"--config={run}/config.yaml", f"--photos={photos}/test", "--file=test.npz"])
    assert np.load("train.npz")["features"].shape[0] == 12 and np.load("test.npz")["features"].shape[0] == 6
    main(["visualize", f"--run={run}", f"--photos={photos}/test/mid/0.png", "--file=a.html"])
    assert "light" in Path("a.html").read_text()
    main(["export", str(run), "exported"])
    main(["evaluate", "--run=exported", "--data.root", str(photos), "--data.workers=0"])
    assert json.loads(Path("exported/evaluation.json").read_text())["sum_top1"] == last["sum_top1"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["elsewhere", "new"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder of their test."""
    monkeypatch.chdir(tmp_path)


def score(*arguments: str) -> float:
    file = Path("scores.json").absolute()
    main(["evaluate", *arguments, f"--file={file}"])
    return json.loads(file.read_text())["sum_top1"]


def test_classes_are_compared_by_name(run: Path, tmp_path: Path) -> None:
    assert score(f"--run={run}") == 1
    subset = make_photos(tmp_path / "subset")
    for part in ("train", "test"):
        shutil.rmtree(subset / part / "dark")
    assert score(f"--run={run}", f"--data.root={subset}") == 1
    renamed = make_photos(tmp_path / "renamed", ("dark", "zebra", "light"))
    with pytest.raises(SystemExit, match="zebra"):
        score(f"--run={run}", f"--data.root={renamed}")


def test_evaluation_needs_neither_training_photos_nor_config(run: Path, tmp_path: Path) -> None:
    tree = make_photos(tmp_path / "tree")
    shutil.rmtree(tree / "train")
    assert score(f"--run={run}", f"--data.root={tree}") == 1
    (run / "config.yaml").unlink()
    assert score(f"--run={run}", f"--data.root={tree}", "--data.workers=0") == 1
    with pytest.raises(SystemExit, match=r"root must be .*folder"):
        score(f"--run={run}")
    with pytest.raises(SystemExit, match="train is missing"):
        main(["embed", f"--run={run}", f"--data.root={tree}", "--part=train", "--file=a.npz"])


def test_embedding_is_what_evaluation_sees(run: Path, photos: Path) -> None:
    for file in ("a.npz", "b.npz"):
        main(["embed", f"--run={run}", "--part=train", f"--file={file}"])
    first, again = (np.load(file)["features"] for file in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(first, again)
    main(["embed", f"--run={run}", f"--photos={photos}/train", "--file=c.npz"])
    any_folder = np.load("c.npz")
    order = np.argsort([str(path) for path in np.load("a.npz")["paths"]])
    np.testing.assert_allclose(any_folder["features"], first[order], rtol=1e-4, atol=1e-5)
    assert set(any_folder["labels"]) == {-1}


def test_explicit_weights_win_and_say_so(
    run: Path, begun: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    other = begun / "checkpoint.pt"
    assert score(f"--run={run}", f"--weights={other}") < 1
    assert f"The weights are those of {other}" in capsys.readouterr().out
    assert json.loads(Path("scores.json").read_text())["checkpoint"] == str(other)
    assert score(f"--weights={run / 'checkpoint.pt'}", f"--data.root={photos}") == 1


def test_weights_of_training_do_not_redirect_evaluation(run: Path, photos: Path) -> None:
    """`train --transfer old.pt` leaves a config that leads to the run's own checkpoint."""
    start = ["--trainer.lr=1", f"--transfer={run}", "--output=worse", "--epochs=1"]
    train(photos, *start)
    last = json.loads(Path("worse/metrics.jsonl").read_text().splitlines()[-1])
    assert last["sum_top1"] < 1
    assert score("--config=worse/config.yaml") == last["sum_top1"]


def test_a_checkpoint_that_does_not_describe_itself(run: Path, photos: Path) -> None:
    """As written before checkpoints did: config.yaml gives the model, the training photos the classes."""
    state = load_checkpoint(run / "checkpoint.pt")
    del state["description"], state["model_arguments"]
    save_checkpoint(run / "checkpoint.pt", state)
    assert score(f"--run={run}") == 1 and score(f"--config={run}/config.yaml") == 1
    main(["export", str(run), "exported"])
    (run / "config.yaml").unlink()
    with pytest.raises(SystemExit, match=r"data\.name must be given"):
        score(f"--run={run}")
    names = ["--data.name=folder", f"--data.root={photos}", *SIZES]
    with pytest.raises(SystemExit, match=r"model\.backbone_name must be given"):
        score(f"--run={run}", *names)
    assert score(f"--run={run}", *names, *SMALL) == 1
    assert score("--run=exported", f"--data.root={photos}") == 1


def test_a_run_is_what_from_pretrained_reads(run: Path, photos: Path, tmp_path: Path) -> None:
    main(["export", str(run), str(tmp_path / "exported")])
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["description"]["classes"] == ["dark", "light", "mid"]
    assert config["description"]["size"] == [32, 32] and len(config["description"]["mean"]) == 3
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = [
            DualAttentionModel.from_pretrained(folder)(images)["sa_logits"]
            for folder in (run, tmp_path / "exported")
        ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="must be a folder with"):
        DualAttentionModel.from_pretrained(photos)


def test_averaged_weights_are_exported(averaged: Path) -> None:
    state = load_checkpoint(averaged / "run" / "checkpoint.pt")
    for folder in ("run", "exported"):
        model = DualAttentionModel.from_pretrained(averaged / folder)
        assert torch.equal(model.sa_head.weight, state["ema_state_dict"]["sa_head.weight"])
        assert not torch.equal(model.sa_head.weight, state["model_state_dict"]["sa_head.weight"])


REFUSED = [
    (["--data.root=/nowhere"], "nowhere"),
    (["--resume=auto", "--trainer.lr=0.5"], "lr"),
    (["--resume=auto", "--data.batch_size=4"], "batch_size"),
    (["--resume=auto", "--data.holdout=1"], "holdout"),
    (["--resume=auto", "--data.resize=40"], "resize"),
    (["--resume=auto", "--seed=3"], "seed"),
    (["--resume=nowhere.pt"], "nowhere.pt"),
    (["--transfer=nowhere.pt"], "nowhere.pt"),
    (["--trainer.lr=-1"], "lr"),
    (["--model.top_k_ratio=7"], "top_k_ratio"),
    (["--pairs.hard_ratio=7"], "hard_ratio"),
]


@pytest.mark.parametrize(("options", "name"), REFUSED)
def test_a_refused_call_leaves_the_run_as_it_was(
    options: list[str], name: str, run: Path, photos: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*")}
    with pytest.raises(SystemExit, match=name):
        train(photos, "--epochs=13", f"--output={run}", *options)
    assert {path: path.read_bytes() for path in run.rglob("*")} == before


def test_a_refused_call_makes_no_folder(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere"):
        train(photos, "--data.root=/nowhere", f"--output={tmp_path / 'a' / 'b'}")
    assert not os.listdir(tmp_path)


def test_resuming_elsewhere_and_with_other_workers(run: Path, tmp_path: Path) -> None:
    """The photos' folder and the number of workers may change; what was written stays a part of the run."""
    tree = make_photos(tmp_path / "another")
    changes = [f"--data.root={tree}", "--data.workers=1", "--trainer.progress=true"]
    main(["train", f"--config={run}/config.yaml", "--epochs=13", "--resume=auto", *changes])
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] == str(tree)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 13


def test_transfer_to_other_classes_and_sizes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_photos(tmp_path / "two", ("cat", "dog"))
    capsys.readouterr()
    sizes = ["--data.size=[64, 64]", "--data.resize=64"]
    start = [f"--transfer={run}", "--epochs=1", "--trainer.lr=1e-12", f"--output={tmp_path / 'next'}"]
    train(tree, *sizes, *start)
    said = capsys.readouterr().out
    assert "sa_head" in said and "checkpoint.pt" in said
    before, after = (load_checkpoint(folder / "checkpoint.pt") for folder in (run, tmp_path / "next"))
    name = "backbone.model.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(
        after["model_state_dict"][name], before["model_state_dict"][name], rtol=0, atol=1e-6
    )
    assert after["model_state_dict"]["sa_head.weight"].shape[0] == 2


def test_old_options_are_explained(run: Path, photos: Path) -> None:
    with pytest.raises(SystemExit, match="--transfer"):
        train(photos, f"--weights={run / 'checkpoint.pt'}")
    with pytest.raises(SystemExit, match="--run"):
        main(["evaluate", f"--output={run}"])


def test_a_variation_of_a_run_needs_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    """A run's config.yaml without --resume would replace the run."""
    before = {path: path.read_bytes() for path in run.rglob("*")}
    again = ["train", f"--config={run}/config.yaml", "--epochs=1", "--trainer.lr=0.01"]
    with pytest.raises(SystemExit, match="--output must be given"):
        main(again)
    main([*again, f"--output={tmp_path / 'other'}"])
    main([again[0], f"--output={tmp_path / 'first'}", *again[1:]])  # in any order
    assert {path: path.read_bytes() for path in run.rglob("*")} == before
    assert (tmp_path / "other/checkpoint.pt").is_file() and (tmp_path / "first/checkpoint.pt").is_file()


def test_scores_of_an_earlier_checkpoint_do_not_stay(run: Path) -> None:
    main(["evaluate", f"--run={run}"])
    main(["train", f"--config={run}/config.yaml", "--epochs=13", "--resume=auto"])
    assert not (run / "evaluation.json").exists()


def test_the_run_wins_over_an_export_in_its_folder(run: Path, begun: Path, tmp_path: Path) -> None:
    main(["export", str(begun), str(tmp_path / "exported")])
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "exported" / name, run / name)
    assert score(f"--run={run}") == 1
    own = load_checkpoint(run / "checkpoint.pt")["model_state_dict"]
    (run / "checkpoint.pt").rename(run / "checkpoint.1.pt")
    assert score(f"--run={run}") == 1
    model = DualAttentionModel.from_pretrained(run)
    assert torch.equal(model.sa_head.weight, own["sa_head.weight"])


def test_an_export_needs_a_new_folder(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*")}
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "config.json").write_text("{}")
    for folder in (run, tmp_path / "others"):
        with pytest.raises(SystemExit, match="folder must be new or empty"):
            main(["export", str(run), str(folder)])
    assert {path: path.read_bytes() for path in run.rglob("*")} == before
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["config.json"]
    (tmp_path / "empty").mkdir()
    main(["export", str(run), str(tmp_path / "empty")])
    assert sorted(os.listdir(tmp_path / "empty")) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("change", ["--data.holdout=2", "--data.seed=5"])
def test_photos_of_training_are_not_scored_as_validation(change: str, run: Path) -> None:
    with pytest.raises(SystemExit, match=rf"{change[:-2]} must be the run's, 0, got {change[-1]}"):
        score(f"--run={run}", change)


def test_the_test_part_of_a_run_with_held_out_photos(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = Path(shutil.copytree(photos, tmp_path / "tree"))
    capsys.readouterr()
    train(tree, "--epochs=1", "--data.holdout=1", "--output=held")
    assert "scored photos: validation" in capsys.readouterr().out
    main(["evaluate", "--run=held"])
    assert json.loads(Path("held/evaluation.json").read_text())["photos"] == {"validation": 3}
    with pytest.raises(SystemExit, match=r"--data\.seed must be the run's"):
        score("--run=held", "--data.seed=5")
    shutil.rmtree(tree / "train")
    main(["embed", "--run=held", "--part=test", "--file=a.npz"])
    score("--run=held", "--data.holdout=0")
    found = json.loads(Path("scores.json").read_text())
    assert found["part"] == "test" and found["changed"] == {"data": {"holdout": 0}}


def test_a_score_says_what_was_changed_for_it(run: Path, tmp_path: Path) -> None:
    tree = make_photos(tmp_path / "another")
    main(
        ["evaluate", f"--run={run}", "--model={top_k_ratio: 1.0}", f"--data.root={tree}", "--data.workers=0"]
    )
    found = json.loads((run / "evaluation.json").read_text())
    assert found["changed"] == {"model": {"top_k_ratio": 1.0}, "data": {"root": str(tree)}}


def test_metrics_of_retrieval_are_refused_for_categories(run: Path) -> None:
    for option in ("--metric=cosine", "--rerank=true", "--rerank=false"):
        with pytest.raises(SystemExit, match=f"{option.partition('=')[0]} must not be given"):
            score(f"--run={run}", option)


def test_a_transfer_takes_the_weights_that_an_export_has(
    photos: Path, averaged: Path, tmp_path: Path
) -> None:
    """The averaged ones, from the run and from its export alike; and the resumed run keeps its record."""
    average = load_checkpoint(averaged / "run" / "checkpoint.pt")["ema_state_dict"]
    for source in (averaged / "run", averaged / "exported", averaged / "run" / "checkpoint.pt"):
        output = tmp_path / f"from_{source.name}"
        train(photos, "--epochs=1", "--trainer.lr=1e-12", f"--output={output}", f"--transfer={source}")
        own = load_checkpoint(output / "checkpoint.pt")["model_state_dict"]
        torch.testing.assert_close(own["sa_head.weight"], average["sa_head.weight"], rtol=0, atol=1e-6)
    resume = ["--epochs=2", "--trainer.lr=1e-12", f"--output={output}", "--resume=auto"]
    for more in ([], [f"--transfer={averaged / 'exported'}"]):
        train(photos, *resume, *more)
        assert yaml.safe_load((output / "config.yaml").read_text())["transfer"] == str(source)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_files_that_are_none(kind: str, run: Path, tmp_path: Path) -> None:
    make: Callable[[Path], None] = os.mkfifo if kind == "fifo" else os.mkdir
    make(tmp_path / "config.yaml")
    with pytest.raises(SystemExit, match="--config must be a YAML file"):
        main(["evaluate", f"--config={tmp_path / 'config.yaml'}"])
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json of .* must be a file"):
        DualAttentionModel.from_pretrained(tmp_path)


def test_scores_name_the_version_of_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MSMT17_V1 in evaluation.json and below both tables, whatever the folder's name."""
    noise = np.random.default_rng(0)
    lists = {
        "list_train.txt": ("train", [(person, photo, 1) for person in range(4) for photo in range(4)]),
        "list_val.txt": ("train", [(0, 9, 2)]),
        "list_query.txt": ("test", [(person, 0, 1) for person in range(2)]),
        "list_gallery.txt": ("test", [(person, 1, 2) for person in range(2)]),
    }
    for file, (folder, photos) in lists.items():
        names = [f"{person:04d}_{photo:03d}_{camera:02d}_x.jpg {person}" for person, photo, camera in photos]
        (tmp_path / "people" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / file).write_text("\n".join(names))
        for name in names:
            pixels = noise.integers(0, 255, (40, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "people" / folder / name.split()[0])
    options = ["--data.name=msmt17", "--data.root=people", "--data.size=[32, 32]", "--data.batch_size=8"]
    main(["train", *SMALL, *options, *QUIET, "--data.workers=0", "--epochs=1", "--output=run"])
    assert "scored photos: query and gallery of MSMT17_V1" in capsys.readouterr().out
    main(["evaluate", "--run=run"])
    assert "scored photos: query and gallery of MSMT17_V1" in capsys.readouterr().out
    found = json.loads(Path("run/evaluation.json").read_text())
    assert (found["dataset"], found["part"]) == ("MSMT17_V1", "query and gallery")
    with pytest.raises(SystemExit, match="gallery_seed must be 0 for msmt17"):
        main(["evaluate", "--run=run", "--data.gallery_seed=3"])
