"""The shipped recipes: what they hold, and that each of them trains."""

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from dataset_trees import TREES
from timm.models import vision_transformer_hybrid
from torch.optim import optimizer as torch_optimizer

from dca_triton import DualAttentionModel
from dca_triton.cli.experiment import normalization
from dca_triton.cli.main import main
from dca_triton.cli.options import DataOptions
from dca_triton.cli.recipe import flat, nested, read_recipe, recipe_files

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
# Those that name no dataset, with the one that the test takes.
OTHERS = {
    "fgvc": "folder",
    "fgvc_today": "cub",
    "fgvc/dinov3_base": "cub",
    "fgvc/dinov3_small": "folder",
    "fgvc/eva02_base": "cars",
    "fgvc/siglip2_base": "aircraft",
    "reid": "market1501",
    "reid_today": "dukemtmc",
    "reid_vehicles": "veri776",
    "reid/dinov3_base": "market1501",
    "reid/dinov3_small": "veri776",
    "reid/eva02_base": "dukemtmc",
    "reid/siglip2_base": "msmt17",
}


@functools.cache
def resolved(name: str) -> dict[str, Any]:
    """The options of a recipe: {"trainer.lr": 5e-4, ...}."""
    return flat(read_recipe(recipe_files()[name])[0])


SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
SMALL_RESNET = {"layers": (1, 1, 1), "channels": (128, 128, 128)}


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
    assert sorted(recipe_files()) == sorted([*expected, *OTHERS])
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tree of each dataset, by its name."""
    folder = tmp_path_factory.mktemp("photos")
    for name, make in TREES.items():
        make(folder / name)
    return folder


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models with one narrow block, and a short, narrow ResNet."""
    create, resnet = timm.create_model, vision_transformer_hybrid.ResNetV2

    def small(name: str, **options: Any) -> torch.nn.Module:
        return create(name, **(SMALL_SWIN if name.startswith("swin") else SMALL) | options)

    def small_resnet(**options: Any) -> torch.nn.Module:
        return resnet(**options | SMALL_RESNET)

    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.setattr(vision_transformer_hybrid, "ResNetV2", small_resnet)


Step = tuple[torch.optim.Optimizer, list[tuple[torch.Tensor, torch.Tensor]]]


@pytest.fixture
def steps() -> Iterator[list[Step]]:
    """Each step's optimizer, and its parameters with what they were before the step."""
    taken: list[Step] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        taken.append((optimizer, [(p, p.detach().clone()) for p in parameters]))

    handle = torch_optimizer.register_optimizer_step_pre_hook(before)
    yield taken
    handle.remove()


def smaller(recipe: dict[str, Any]) -> dict[str, Any]:
    """Options of a small run: narrow blocks, sides of 4 patches, and 2 epochs of one step on 8 photos."""
    backbone, (height, width) = recipe["model.backbone_name"], recipe["data.size"]
    side = 4 * (14 if "patch14" in backbone else 16)
    options = {
        "model.pretrained": False,
        "data.size": [side, side * width // height],
        "data.batch_size": 8,
        "trainer.warmup_epochs": 1,
        "epochs": 2,
    }
    return options | ({"data.resize": side + 8} if "data.resize" in recipe else {})


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_a_recipe_trains(
    name: str,
    photos: Path,
    tmp_path: Path,
    small_backbones: None,
    steps: list[Step],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two steps from the command line, on a small tree of its dataset, and the scores at the end."""
    recipe, run = resolved(name), tmp_path / "run"
    changes = smaller(recipe)
    place = {"data.name": OTHERS[name]} if name in OTHERS else {}
    place |= {"data.root": str(photos / (place or recipe)["data.name"]), "output": str(run)}
    quiet = {"data.workers": 0, "trainer.progress": False, "trainer.save_every": 2}
    given = changes | place | quiet
    texts = {option: v if isinstance(v, str) else json.dumps(v) for option, v in given.items()}
    main(["train", f"--config={name}", *(f"--{option}={text}" for option, text in texts.items())])

    (optimizer, parameters), _ = steps
    assert type(optimizer).__name__.lower() == recipe["trainer.optimizer"]
    moved = [(now != before).any() for now, before in parameters]
    # A step may be less than the rounding of a norm's weight, which is 1.
    assert all(moves or (before == 1).all() for moves, (_, before) in zip(moved, parameters, strict=True))
    assert sum(moved) > 0.9 * len(moved)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in lines)
    lr = recipe["trainer.lr"] * 8 / recipe["trainer.lr_per"]
    assert [line["lr"] for line in lines] == pytest.approx([lr / 2, lr])  # the warm-up, and its end

    used = flat(yaml.safe_load((run / "config.yaml").read_text()))
    assert {option: used[option] for option in recipe} == {o: changes.get(o, v) for o, v in recipe.items()}
    said = capsys.readouterr().out
    assert ("as reported by" in said) == (name not in OTHERS)
    assert "has no such score" not in said
    if name not in OTHERS:
        _, told = said.split("This run has changes: ")
        assert {change.split()[0] for change in told.split("; ")} == set(changes)


def test_every_backbone_takes_the_size_of_its_recipes(small_backbones: None) -> None:
    """The photos above are smaller. Backbones that differ in their width alone are built once."""
    built = set()
    for name in recipe_files():
        model, size = nested(resolved(name))["model"], tuple(resolved(name)["data.size"])
        kind = re.sub("tiny|small|base", "", model["backbone_name"])
        if (kind, size) not in built:
            built.add((kind, size))
            own = {"window_size": 7} if kind.startswith("swin") else {"depth": 1}
            with torch.device("meta"):
                DualAttentionModel(**model, num_classes=3, img_size=size, pretrained=False, **own)
    assert len(built) == 15


def test_photos_are_normalized_for_the_weights() -> None:
    for name in recipe_files():
        options = nested(resolved(name))
        data = DataOptions(**{"name": "cub"} | options["data"])
        backbone = options["model"]["backbone_name"]
        assert tuple(map(tuple, normalization(backbone, data))) == normalization(backbone)
    half = ((0.5,) * 3, (0.5,) * 3)
    assert normalization("vit_base_patch16_224.orig_in21k") == half
    assert resolved("veri776/vit_base")["data.mean"] == [0.5, 0.5, 0.5]
