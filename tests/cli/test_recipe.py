"""Recipes: what they hold, that each of them trains, and files that build on them."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dataset_trees import TREES
from timm.models import vision_transformer_hybrid

from dca_triton import DualAttentionModel
from dca_triton.cli.experiment import normalization
from dca_triton.cli.main import main
from dca_triton.cli.options import DataOptions
from dca_triton.cli.parser import parser_of
from dca_triton.cli.recipe import flat, nested, read_recipe, recipe_files
from dca_triton.cli.values import experiment_of

# The numbers of Zhu et al., CVPR 2022: top-1, and mAP/rank-1.
CATEGORIES = """
cub: deit_tiny 82.1 -> 84.6, deit_small 85.8 -> 87.6, deit_base 88.0 -> 88.8, vit_base 90.8 -> 91.4,
     r50_vit_base 91.3 -> 92.0, cait_xs24 88.5 -> 89.7, swin_tiny 84.9 -> 85.8
cars: deit_tiny 87.2 -> 89.4, deit_small 90.7 -> 92.3, deit_base 92.9 -> 93.8, vit_base 92.5 -> 93.4,
     r50_vit_base 94.0 -> 95.3
aircraft: deit_tiny 84.7 -> 87.4, deit_small 88.1 -> 90.0, deit_base 90.3 -> 92.6, vit_base 90.0 -> 91.5,
     r50_vit_base 92.4 -> 93.3
"""
IDENTITIES = """
veri776: deit_tiny 71.3/94.3 -> 74.1/94.7, deit_small 76.7/95.5 -> 78.1/95.9,
     deit_base 78.3/95.9 -> 80.0/96.5, vit_base 78.1/96.0 -> 80.2/96.9
msmt17: deit_tiny 42.1/63.9 -> 44.9/68.2, deit_small 53.3/75.0 -> 55.1/77.3,
     deit_base 60.5/81.6 -> 62.3/83.1, vit_base 61.6/81.4 -> 64.0/83.1
market1501: deit_tiny 77.9/90.3 -> 79.8/91.8, deit_small 84.3/93.7 -> 85.3/94.0,
     deit_base 86.6/94.4 -> 87.2/94.5, vit_base 87.1/94.3 -> 87.5/94.7
dukemtmc: deit_tiny 69.5/82.9 -> 71.7/84.9, deit_small 75.7/87.6 -> 77.4/87.9,
     deit_base 79.1/88.7 -> 80.2/89.6, vit_base 78.9/89.4 -> 80.1/89.0
"""
OURS = [
    f"{task}/{name}"
    for task in ("fgvc", "reid")
    for name in ("dinov3_base", "dinov3_small", "eva02_base", "siglip2_base")
]
BASES = ["fgvc", "fgvc_today", "reid", "reid_today", "reid_vehicles"]

# Of each family and task one; the dataset of those that name none comes second.
TRAINED = {
    "cub/cait_xs24": "",
    "cub/swin_tiny": "",
    "cub/deit_tiny": "",
    "cars/vit_base": "",
    "aircraft/r50_vit_base": "",
    "fgvc/dinov3_small": "folder",
    "fgvc/eva02_base": "cub",
    "fgvc/siglip2_base": "cars",
    "market1501/deit_tiny": "",
    "dukemtmc/vit_base": "",
    "msmt17/deit_small": "",
    "veri776/deit_base": "",
    "veri776/vit_base": "",
    "reid/dinov3_base": "market1501",
    "reid/eva02_base": "dukemtmc",
    "reid/siglip2_base": "msmt17",
}
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}


@functools.cache
def resolved(name: str) -> dict[str, Any]:
    """The options of a recipe: {"trainer.lr": 5e-4, ...}."""
    return flat(read_recipe(recipe_files()[name])[0])


def rows(table: str) -> dict[str, tuple[str, str]]:
    """{"cub/deit_tiny": ("82.1", "84.6"), ...}"""
    found = {}
    for dataset, text in re.findall(r"^(\w+):((?:[^:]|\n)+?)(?=^\w+:|\Z)", table, re.MULTILINE):
        for backbone, before, after in re.findall(r"(\w+) (\S+) -> ([\d./]+)", text):
            found[f"{dataset}/{backbone}"] = (before, after)
    return found


def test_the_rows_of_the_paper_and_their_numbers() -> None:
    expected: dict[str, dict[str, dict[str, float]]] = {}
    for name, (before, after) in rows(CATEGORIES).items():
        expected[name] = {"sum_top1": {"baseline": float(before), "dcal": float(after)}}
    for name, (before, after) in rows(IDENTITIES).items():
        pairs = zip(("mAP", "rank1"), before.split("/"), after.split("/"), strict=True)
        expected[name] = {s: {"baseline": float(b), "dcal": float(a)} for s, b, a in pairs}
    assert len(expected) == 17 + 16
    assert sorted(recipe_files()) == sorted([*expected, *OURS, *BASES])
    for name, file in recipe_files().items():
        _, recipe = read_recipe(file)
        if name not in expected:
            assert recipe is None
            continue
        assert recipe is not None and recipe.name == name
        scores = dict(recipe.expected)
        assert re.fullmatch(
            r"Zhu et al\., CVPR 2022, (Table [12]|supplementary material)", scores.pop("source")
        )
        assert scores == expected[name]
        assert resolved(name)["data.name"] == name.partition("/")[0]


def test_the_weights_have_their_full_names() -> None:
    """The paper (section 4.1): DeiT of ImageNet-1k, ViT of ImageNet-21k; for identities TransReID's DeiT."""
    known = set(timm.list_models("*", pretrained=True))
    names = {name: resolved(name)["model.backbone_name"] for name in recipe_files()}
    assert all("." in backbone and backbone in known for backbone in names.values())
    deit, vit, r50 = "deit_{}_patch16_224.fb_in1k", "vit_base_patch16_224.orig_in21k", "vit_base_r50_s16_224"
    for name in [*rows(CATEGORIES), *rows(IDENTITIES)]:
        of_reid = name in rows(IDENTITIES)
        family, _, size = name.partition("/")[2].partition("_")
        expected = {
            "deit": deit.format(f"{size}_distilled" if of_reid else size),
            "vit": vit,
            "r50": f"{r50}.orig_in21k",
            "cait": "cait_xs24_384.fb_dist_in1k",
            "swin": "swin_tiny_patch4_window7_224.ms_in1k",
        }
        assert names[name] == expected[family]
    assert (names["fgvc"], names["reid"]) == (names["cub/deit_base"], names["market1501/deit_base"])
    assert resolved("cub/swin_tiny")["model.branches"] == ["sa", "pwca"]


def test_the_settings_of_the_paper_and_of_its_sources() -> None:
    """Section 4.1 of the paper; what it leaves open is DeiT's and TransReID's."""
    fgvc, persons, vehicles = map(resolved, ("fgvc", "reid", "reid_vehicles"))
    paper = {
        "model.layout": "paper",
        "model.top_k_ratio": 0.1,
        "data.size": [448, 448],
        "data.resize": 550,
        "data.batch_size": 16,
        "trainer.lr": 5e-4,
        "trainer.lr_per": 512,
        "trainer.weight_decay": 0.05,
        "epochs": 100,
    }
    deit = {
        "model.backbone_name": "deit_base_patch16_224.fb_in1k",
        "model.drop_path_rate": 0.1,
        "data.test_crop": "center",
        "trainer.optimizer": "adamw",
        "trainer.min_lr": 1e-5,
        "trainer.warmup_epochs": 5,
        "trainer.weight_decay_exclude_1d": True,
        "trainer.loss_weights_lr": 5e-4,
    }
    assert fgvc == paper | deit
    paper = {
        "model.layout": "paper",
        "model.top_k_ratio": 0.3,
        "data.size": [256, 128],
        "data.batch_size": 64,
        "data.photos": 4,
        "trainer.optimizer": "sgd",
        "trainer.lr": 0.008,
        "trainer.lr_per": 64,
        "trainer.weight_decay": 1e-4,
        "epochs": 120,
    }
    transreid = {
        "model.backbone_name": "deit_base_distilled_patch16_224.fb_in1k",
        "model.drop_path_rate": 0.1,
        "model.head": "bnneck",
        "trainer.min_lr": 0.002 * 0.008,
        "trainer.warmup_epochs": 5,
        "trainer.bias_lr_scale": 2,
        "trainer.metric_loss": "soft_margin_triplet",
        "trainer.loss_weights_lr": 0.008,
    }
    assert persons == paper | transreid
    assert vehicles == persons | {"data.size": [256, 256]}


def test_every_recipe_is_understood_by_the_command_line() -> None:
    """Those that train below go the same way."""
    parser = parser_of("train")
    for name in recipe_files().keys() - TRAINED.keys():
        dataset = [] if "data.name" in resolved(name) else ["--data.name=cub"]
        given = parser.parse_args([f"--config={name}", "--data.root=photos", *dataset])
        found = flat(experiment_of(given.as_dict()).__dict__ | {"data": {}})
        for option, value in resolved(name).items():
            if not option.startswith("data."):
                assert found[option] == value


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models with two narrow blocks, and a short ResNet."""
    create, resnet = timm.create_model, vision_transformer_hybrid._resnetv2

    def small(name: str, **options: Any) -> torch.nn.Module:
        return create(name, **(SMALL_SWIN if name.startswith("swin") else SMALL) | options)

    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.setattr(
        vision_transformer_hybrid, "_resnetv2", lambda layers, **options: resnet((1, 1, 1), **options)
    )


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_a_recipe_trains(
    name: str, tmp_path: Path, small_backbones: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its warm-up and two steps more, on its dataset in small and with a small backbone."""
    dataset = TRAINED[name] or name.partition("/")[0]
    TREES[dataset](tmp_path / "photos")
    side = 28 if "eva02" in name else 64 if "swin" in name else 32
    size = [f"--data.size=[{side}, {side}]", f"--data.resize={side + 8}", "--data.batch_size=8"]
    place = [f"--data.name={dataset}", f"--data.root={tmp_path / 'photos'}", f"--output={tmp_path / 'run'}"]
    quiet = ["--data.workers=0", "--trainer.progress=false", "--trainer.save_every=9", "--epochs=7"]
    main(["train", f"--config={name}", "--model.pretrained=false", *size, *place, *quiet])
    said = capsys.readouterr().out
    assert ("as reported by" in said) == (name not in OURS)
    assert "has no such score" not in said and "data.name" not in said


def test_the_others_are_like_one_that_trains() -> None:
    """Every other recipe has the options of a trained one and a backbone of its class."""
    others = [name for name in recipe_files() if name not in TRAINED and name not in BASES]
    assert len(others) == 33 + 8 - len(TRAINED)

    def settings(name: str) -> dict[str, Any]:
        return {k: v for k, v in resolved(name).items() if k not in ("model.backbone_name", "data.name")}

    for name in others:
        assert settings(name) in [settings(one) for one in TRAINED]
    assert settings("market1501/vit_base") != settings("market1501/deit_base")  # mean and deviation

    classes: dict[str, type] = {}
    for name in [*TRAINED, *others]:
        options = nested(resolved(name))
        backbone = options["model"]["backbone_name"]
        if backbone not in classes:
            shallow = {} if "swin" in backbone else {"depth": 1}
            size = tuple(options["data"]["size"])
            with torch.device("meta"):
                model = DualAttentionModel(
                    **options["model"], num_classes=3, img_size=size, pretrained=False, **shallow
                )
            classes[backbone] = type(model.backbone.model)
        patch = 14 if "patch14" in backbone else 16
        assert not any(side % patch for side in options["data"]["size"])
    assert set(classes.values()) == {classes[resolved(name)["model.backbone_name"]] for name in TRAINED}


def test_photos_are_normalized_for_the_weights() -> None:
    for name in recipe_files():
        options = nested(resolved(name))
        data = DataOptions(**{"name": "cub"} | options["data"])
        backbone = options["model"]["backbone_name"]
        assert tuple(map(tuple, normalization(backbone, data))) == normalization(backbone)
    half = ((0.5,) * 3, (0.5,) * 3)
    assert normalization("vit_base_patch16_224.orig_in21k") == half
    assert resolved("veri776/vit_base")["data.mean"] == [0.5, 0.5, 0.5]


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_builds_on_others(tmp_path: Path) -> None:
    """The nearest value holds, and paths are relative to the file that names them."""
    (tmp_path / "more").mkdir()
    write(tmp_path, first="base: cub/deit_small\ntrainer.lr: 0.1\nmodel: {timm: {depth: 3}}\n")
    write(
        tmp_path / "more",
        second="base: ../first.yaml\ntrainer: {lr: 0.2, min_lr: 0.0}\nmodel: {timm: {x: 1}}\n",
    )
    options, recipe = read_recipe(tmp_path / "more/second.yaml")
    changed = {"trainer.lr": 0.2, "trainer.min_lr": 0.0, "model.timm.depth": 3, "model.timm.x": 1}
    assert flat(options) == resolved("cub/deit_small") | changed
    assert recipe is not None and recipe.name == "cub/deit_small"
    assert flat(recipe.options) == resolved("cub/deit_small")

    write(tmp_path, own="base: first.yaml\nexpected: {source: mine, mAP: {baseline: 1, dcal: 2.5}}\n")
    options, recipe = read_recipe(tmp_path / "own.yaml")
    assert recipe is not None and recipe.options == options and recipe.name == str(tmp_path / "own.yaml")
    assert recipe.expected == {"source": "mine", "mAP": {"baseline": 1, "dcal": 2.5}}


WRONG = [
    ("base: nowhere", "base in .*wrong.yaml must be a YAML file or a recipe that .*train --help"),
    ("base: 3", "base in .*wrong.yaml must be a YAML file or a recipe, got 3"),
    ("base: wrong.yaml", "base in .* must not lead back to itself, got .*wrong.yaml -> .*wrong.yaml"),
    (
        "base: other.yaml",
        r"must not lead back to itself, got .*wrong\.yaml -> .*other\.yaml -> .*wrong\.yaml",
    ),
    ("expected: 3", "expected in .*wrong.yaml must hold source, .* sum_top1, .* mAP, .*, got 3"),
    ("expected: {mAP: {baseline: 1, dcal: 2}}", "must hold source"),
    ("expected: {source: a}", "must hold source"),
    ("expected: {source: a, top1: {baseline: 1, dcal: 2}}", "must hold source"),
    ("expected: {source: a, mAP: {baseline: 1}}", "must hold source"),
    ("expected: {source: a, mAP: {baseline: 1, dcal: 200}}", "must hold source"),
    (
        "recipe: {name: a, expected: {source: a, mAP: {baseline: 1, dcal: 2}}, replaced: {1: 2}}",
        "recipe in .* must hold name, expected, replaced, got",
    ),
    ("recipe: {name: a}", "recipe in .* must hold name, expected, replaced, got"),
    ("base: ''", "base in .*wrong.yaml must have a value"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_files_end_with_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, wrong=text, other="base: wrong.yaml")
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit, match=message) as stop:
            main([command, f"--config={tmp_path / 'wrong.yaml'}"])
        assert "\n" not in str(stop.value.code)


def test_a_misspelt_recipe_is_named() -> None:
    with pytest.raises(SystemExit, match="train --help` lists, got 'cub/deit_smal'"):
        main(["train", "--config=cub/deit_smal"])
