"""Pictures from a trained model: `python examples/pictures.py [RUN PHOTO...]`.

RUN is the folder that `dca-triton train` wrote. Without arguments, a tiny model is trained in a temporary
folder first. The script writes `sheet.html`, which explains every photo, and `curves.png`, the run's metrics.
"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from dca_triton.cli.main import main as dca_triton
from dca_triton.visualization import training_curves

COLORS = {"red": (200, 60, 50), "green": (60, 150, 60), "blue": (60, 90, 200)}


def train(folder: Path) -> list[Path]:
    """Trains on plain colored photos and returns the test photos."""
    photos = []
    for part, count in (("train", 4), ("test", 1)):
        for name, color in COLORS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                photos.append(folder / part / name / f"{i}.png")
                Image.new("RGB", (40, 40), tuple(c + 5 * i for c in color)).save(photos[-1])
    data = ["--data.name=folder", f"--data.root={folder}", "--data.size=[32, 32]", "--data.resize=40"]
    model = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
    loader = ["--data.batch_size=6", "--data.workers=0", "--trainer.progress=false"]
    dca_triton(["train", *data, *model, *loader, "--epochs=5", f"--output={folder}"])
    return [photo for photo in photos if photo.parent.parent.name == "test"]


def main(folder: Path, photos: list[Path]) -> None:
    files = f"[{', '.join(map(str, photos))}]"
    sheet = ["--photos", files, "--file", str(folder / "sheet.html")]
    dca_triton(["visualize", "--run", str(folder), *sheet])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    training_curves([json.loads(line) for line in lines], folder / "curves.png")
    print(f"{folder}: sheet.html, curves.png")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(Path(sys.argv[1]), [Path(photo) for photo in sys.argv[2:]])
    else:
        run = Path(tempfile.mkdtemp())
        main(run, train(run))
