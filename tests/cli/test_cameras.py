"""Re-ID with camera embeddings and overlapping patches, from training to every command on the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dca_triton import DualAttentionModel
from dca_triton.checkpoint import load_checkpoint
from dca_triton.cli.main import main
from dca_triton.data import read_image, reid_test
from dca_triton.evaluation import load_embeddings

NAMES = {
    "train/a": ("1_c2.png", "2_c5.png", "3_c11.png", "4_c2.png"),
    "train/b": ("1_c11.png", "2_c5.png", "3_c2.png", "4_c5.png"),
    "query/x": ("1_c2.png",),
    "query/y": ("1_c5.png",),
    "gallery/x": ("1_c5.png", "2_c11.png"),
    "gallery/y": ("1_c9.png", "2_c2.png"),
}
UNSEEN = "1 of 6 photos get the mean of the embeddings of cameras: cameras 9 were not in training"
OPTIONS = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
OPTIONS += ["--model.camera_embedding=true", "--model.patch_stride=12", "--trainer.progress=false"]
OPTIONS += ["--model.timm={depth: 2}"]
DATA = ["--data.name=folder", "--data.size=[40, 36]", "--data.batch_size=4", "--data.photos=2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for folder, names in NAMES.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            pixels = noise.integers(0, 255, (44, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / name)
    return root


def arguments(photos: Path, output: Path) -> list[str]:
    return ["train", *OPTIONS, *DATA, f"--data.root={photos}", "--data.workers=0", f"--output={output}"]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after an epoch and resumed."""
    output = tmp_path_factory.mktemp("runs") / "run"
    with pytest.warns(UserWarning, match=UNSEEN) as caught:
        main([*arguments(photos, output), "--epochs=1"])
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=UNSEEN):
        main([*arguments(photos, output), "--epochs=2", "--resume=auto"])
    return output


def test_a_run_has_the_cameras_of_its_training_photos(run: Path) -> None:
    state = load_checkpoint(run / "checkpoint.pt")
    assert state["model_arguments"]["cameras"] == [2, 5, 11] and state["model_arguments"]["views"] == []
    assert state["model_state_dict"]["sie.table"].shape == (3, 1, 64)
    assert state["epoch"] == 2
    assert DualAttentionModel.from_pretrained(run).backbone.grid_size == (3, 2)


def test_a_resumed_run_is_an_uninterrupted_one(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=UNSEEN):
        main([*arguments(photos, tmp_path / "whole"), "--epochs=2"])
    before, after = (
        load_checkpoint(r / "checkpoint.pt")["model_state_dict"] for r in (tmp_path / "whole", run)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    other = [*arguments(photos, run), "--epochs=3", "--resume=auto", "--model.patch_stride=16"]
    refused = pytest.raises(SystemExit, match=r"model.patch_stride must be 12, got 16")
    with pytest.warns(UserWarning, match=UNSEEN), refused:
        main(other)


def test_embeddings_are_of_the_photos_own_cameras(run: Path, photos: Path, tmp_path: Path) -> None:
    one = UNSEEN.replace("of 6", "of 4")
    with pytest.warns(UserWarning, match=one) as caught:
        main(["embed", f"--run={run}", "--part=gallery", f"--file={tmp_path / 'g.npz'}"])
    assert len(caught) == 1
    found = load_embeddings(tmp_path / "g.npz")
    assert found.cameras.tolist() == [5, 11, 9, 2], "the protocol needs the data's own numbers"
    model = DualAttentionModel.from_pretrained(run)
    read = reid_test((40, 36), mean=model.description.mean, std=model.description.std)
    images = torch.stack([read(read_image(Path(path))) for path in found.paths])
    torch.testing.assert_close(found.features, model.extract_features(images, cameras=found.cameras))
    mean = model.extract_features(images)
    differs = (found.features - mean).abs().amax(1) > 1e-3
    assert differs.tolist() == [True, True, False, True], "camera 9 was not in training"
    with pytest.warns(UserWarning, match="4 of 4 photos .* their cameras are unknown"):
        main(["embed", f"--run={run}", f"--photos={photos / 'gallery'}", f"--file={tmp_path / 'p.npz'}"])
    torch.testing.assert_close(load_embeddings(tmp_path / "p.npz").features, mean)


def test_every_command_takes_the_run_and_its_export(run: Path, photos: Path, tmp_path: Path) -> None:
    exported, file = tmp_path / "exported", tmp_path / "scores.json"
    main(["export", str(run), str(exported)])
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    data = ["--data.root", str(photos), "--data.workers=0"]
    for options in ([f"--run={run}"], [f"--run={exported}"], [f"--run={run}", "--flip=true"]):
        with pytest.warns(UserWarning, match=UNSEEN) as caught:
            main(["evaluate", *options, *data, f"--file={file}"])
        assert len(caught) == 1
        assert "--flip=true" in options or json.loads(file.read_text())["mAP"] == last["mAP"]
    with pytest.warns(UserWarning, match=UNSEEN):
        main(["rank", f"--run={run}", *data, "--rows=1", "--photos=2", f"--file={tmp_path / 'r.html'}"])
    photo = photos / "query/x/1_c2.png"
    main(["visualize", f"--run={run}", f"--photos={photo}", f"--file={tmp_path / 'v.html'}"])


def test_data_without_cameras_have_no_embeddings(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--model.view_embedding must be false for folder, whose views are"):
        main([*arguments(photos, tmp_path / "run"), "--model.view_embedding=true"])
    assert not (tmp_path / "run").exists()
