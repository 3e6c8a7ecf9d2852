"""Contact sheets: each photo has its own row, and the HTML file is self-contained."""

import base64
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dca_triton import DualAttentionModel
from dca_triton.data import fgvc_test, reid_test
from dca_triton.visualization import distractor_share, explain, heat_map, sheet, visualize

CLASSES = ["Laysan <b> Albatross", "a & b", "$c_1", "d", "e"]
SIZE = (64, 32)


@pytest.fixture(scope="module")
def model() -> DualAttentionModel:
    torch.manual_seed(0)
    model = DualAttentionModel("test_vit", 5, layout="paper", img_size=SIZE, pretrained=False)
    torch.nn.init.normal_(model.sa_head.weight, std=0.5)  # predictions that differ
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [folder / name for name in ("1 & 2.png", "b.jpg", "c.png", "d.png")]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (40 + i, 30, 3), dtype=np.uint8)).save(path)
    return paths


def picture(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.get_array()))


def images_of(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """As shown, and as the model takes them, by the transform of evaluation."""
    shown = [reid_test(SIZE, (0, 0, 0), (1, 1, 1))(Image.open(p).convert("RGB")) for p in paths]
    return torch.stack(shown), torch.stack([reid_test(SIZE)(Image.open(p).convert("RGB")) for p in paths])


def test_each_row_is_one_photos_own(
    model: DualAttentionModel,
    photos: list[Path],
    figures: list[Figure],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sheet, "BATCH", 2)
    three, others = photos[:3], [photos[3], photos[0], photos[1]]
    visualize(model, three, tmp_path / "s.png", others, CLASSES, progress=False)
    with Image.open(tmp_path / "s.png") as saved:
        assert saved.size == tuple(figures[0].canvas.get_width_height())
    assert [text.get_text() for text in figures[0].texts] == [
        "photo",
        "rollout",
        "local patches: 1",
        "predictions",
        "distractor",
        "attention on it",
    ]
    axes = np.array(figures[0].axes[:18]).reshape(3, 6)
    (shown, images), (shown_others, partners) = images_of(three), images_of(others)
    seen, shares = explain(model, images), distractor_share(model, images, partners)
    for i, line in enumerate(axes):
        assert line[0].get_title(loc="left") == f"{three[i].parent.name}/{three[i].name}"
        torch.testing.assert_close(picture(line[0].images[0]).permute(2, 0, 1), shown[i])
        heat = heat_map(seen.rollout[i], model.backbone.grid_size, SIZE, 1)
        torch.testing.assert_close(picture(line[1].images[1]), heat, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(picture(line[4].images[0]).permute(2, 0, 1), shown_others[i])
        texts = [text.get_text() for text in line[3].texts]
        best = int(seen.sa[i].argmax())
        assert texts[:2] == ["SA", f"{100 * seen.sa[i, best]:.1f} %  {CLASSES[best]}"]
        order = seen.glca[i].argsort(descending=True)[:3].tolist()
        assert texts[4:] == ["GLCA", *(f"{100 * seen.glca[i, k]:.1f} %  {CLASSES[k]}" for k in order)]
        widths = [bar.get_width() for bar in line[3].patches]
        best_of_both = torch.cat([seen.sa[i].topk(3).values, seen.glca[i].topk(3).values])
        assert widths == pytest.approx(best_of_both.tolist(), abs=1e-4)
        _, token, patches = line[5].child_axes[0].lines
        assert token.get_ydata() == pytest.approx(shares[i, :, 0].numpy(), abs=1e-4)
        assert patches.get_ydata() == pytest.approx(shares[i, :, 1:].mean(1).numpy(), abs=1e-4)
        assert list(token.get_xdata()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "options", "start"),
    [
        ("test_vit", {}, "the class token"),
        ("test_vit2", {}, "the mean of the patches"),
        ("test_vit3", {"reg_tokens": 0}, "the weights of attention pooling"),
    ],
)
def test_a_model_without_a_class_token_has_no_curve_of_one(
    name: str, options: dict[str, int], start: str, photos: list[Path], figures: list[Figure], tmp_path: Path
) -> None:
    """Its patches begin at token 0, or after a register."""
    arguments = {"layout": "paper", "img_size": SIZE, "pretrained": False, "top_k_ratio": 0.4, "depth": 2}
    model = DualAttentionModel(name, 5, **(arguments | options))
    prefix = model.backbone.num_prefix_tokens
    assert prefix == options.get("reg_tokens", 1)
    visualize(model, photos[:1], tmp_path / "s.html", [photos[1]], CLASSES, progress=False)
    _, heat, local, _, _, curves = figures[0].axes[:6]
    (_, images), (_, others) = images_of(photos[:1]), images_of(photos[1:2])
    torch.testing.assert_close(
        picture(heat.images[1]),
        heat_map(explain(model, images).rollout[0], model.backbone.grid_size, SIZE, prefix),
    )
    assert len(local.patches) == 3  # 40 % of 8
    assert figures[0].texts[2].get_text() == "local patches: 3"
    labels = [text.get_text() for text in curves.child_axes[0].get_legend().get_texts()]
    assert labels == ["class token"] * (name == "test_vit") + ["mean of patches"]
    share = distractor_share(model, images, others)[0, :, prefix:].mean(1)
    assert curves.child_axes[0].lines[-1].get_ydata() == pytest.approx(share.numpy(), abs=1e-5)
    assert f"starts from {start};" in (tmp_path / "s.html").read_text()


def test_photos_are_cropped_as_in_evaluation(
    photos: list[Path], figures: list[Figure], tmp_path: Path
) -> None:
    square = DualAttentionModel("test_vit", 5, layout="paper", img_size=32, pretrained=False)
    for resize in (None, 40):
        visualize(square, photos[:1], tmp_path / "s.png", progress=False, resize=resize)
    plain, center = (picture(figure.axes[0].images[0]).permute(2, 0, 1) for figure in figures)
    photo = Image.open(photos[0]).convert("RGB")
    torch.testing.assert_close(plain, fgvc_test(32, (0, 0, 0), (1, 1, 1))(photo), rtol=0, atol=0)
    torch.testing.assert_close(center, fgvc_test(32, (0, 0, 0), (1, 1, 1), 40)(photo), rtol=0, atol=0)
    assert not torch.equal(plain, center)


def test_a_crop_needs_a_square(model: DualAttentionModel, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="resize must be at least the side of a square image, 64 x 32, got 80"
    ):
        visualize(model, photos[:1], tmp_path / "s.png", progress=False, resize=80)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attrs))


def test_page_stands_alone(model: DualAttentionModel, photos: list[Path], tmp_path: Path) -> None:
    visualize(model, photos[:2], tmp_path / "s.html", classes=CLASSES, progress=False)
    page = Page((tmp_path / "s.html").read_text(encoding="utf-8"))
    assert page.tags.count("figure") == len(page.images) == 2
    assert "b" not in page.tags and "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    _, images = images_of(photos[:2])
    seen = explain(model, images)
    for image, path, sa in zip(page.images, photos, seen.sa, strict=False):
        best = int(sa.argmax())
        said = f"{path.parent.name}/{path.name} — SA: {CLASSES[best]} {100 * sa[best]:.1f} %"
        assert image["alt"].startswith(said)
        assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")


def test_names_of_any_bytes(model: DualAttentionModel, tmp_path: Path, figures: list[Figure]) -> None:
    names = [b"\xff\xfe.png", "\u76ee\u5f55.png".encode(), b"a\tb\n<i>.png"]
    photos = [tmp_path / os.fsdecode(name) for name in names]
    for photo in photos:
        Image.new("RGB", (40, 30), "red").save(photo)
    classes = ["\u9ce5", "\udcff", "\ud800", "\x07", "e"]
    visualize(model, photos, tmp_path / "s.png", classes=classes, progress=False)
    titles = [axis.get_title(loc="left").rpartition("/")[2] for axis in figures[0].axes[:12:4]]
    assert titles == ["\u25a1\u25a1.png", "\u25a1\u25a1.png", "a\u25a1b\u25a1<i>.png"]
    visualize(model, photos, tmp_path / "s.html", classes=classes, progress=False)
    page = Page((tmp_path / "s.html").read_text(encoding="utf-8"))
    alts = [image["alt"].rpartition(" \u2014 ")[0].rpartition("/")[2] for image in page.images]
    assert alts == ["\ufffd\ufffd.png", "\u76ee\u5f55.png", "a\ufffdb\ufffd<i>.png"]
    assert "i" not in page.tags


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_what_the_model_sees_is_what_is_drawn(
    suffix: str, model: DualAttentionModel, tmp_path: Path, figures: list[Figure]
) -> None:
    """A photo turned by EXIF and 16 bits of gray: right for the model and in the picture."""
    exif = Image.Exif()
    exif[274] = 6
    gray = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(64, 32)
    Image.fromarray(gray).save(tmp_path / "x.png", exif=Image.Exif())
    Image.fromarray(np.rot90(gray).copy()).save(tmp_path / "turned.png", exif=exif)
    visualize(model, [tmp_path / "x.png", tmp_path / "turned.png"], tmp_path / f"s.{suffix}", progress=False)
    first, second = (f for f in figures[0].axes[:8:4]) if suffix == "png" else (f.axes[0] for f in figures)
    assert torch.equal(picture(first.images[0]), picture(second.images[0]))
    torch.testing.assert_close(
        picture(first.images[0])[..., 0], torch.from_numpy(gray / 65535).float(), atol=2e-3, rtol=0
    )


def test_normalization_is_the_callers(
    model: DualAttentionModel, photos: list[Path], figures: list[Figure], tmp_path: Path
) -> None:
    half = (0.5, 0.5, 0.5)
    visualize(model, photos[:1], tmp_path / "s.png", mean=half, std=half, progress=False)
    shown, _ = images_of(photos[:1])
    found = [bar.get_width() for bar in figures[0].axes[3].patches][:3]
    assert found == pytest.approx(explain(model, shown * 2 - 1).sa[0].topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"photos": []}, "photos must hold at least one image file, got none"),
        ({"output": Path("s.pdf")}, "output must end in .png or .html, got 's.pdf'"),
        ({"output": Path("no/s.png")}, "output must be in a folder that exists, got 'no/s.png'"),
        (
            {"photos": [Path("a")] * 65},
            "photos must hold at most 64 for a .png (any number for .html), got 65",
        ),
        (
            {"distractors": [Path("a")] * 3, "classes": ["a"]},
            "distractors must hold one per photo, 1, got 3; classes must be the model's 5 or none, got 1",
        ),
        ({"photos": [Path("nowhere.jpg")]}, "image nowhere.jpg cannot be read (FileNotFoundError"),
    ],
)
def test_what_cannot_be_drawn(
    model: DualAttentionModel, photos: list[Path], changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arguments = {"photos": photos[:1], "output": tmp_path / "s.png", "progress": False, **changed}
    with pytest.raises(ValueError, match=re.escape(message)):
        visualize(model, **arguments)
    assert not list(tmp_path.iterdir())
