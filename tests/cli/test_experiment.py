"""Options to photos, batches and models."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dca_triton.cli.experiment import (
    build_model,
    describe,
    evaluation_batches,
    load_splits,
    normalization,
    scores,
    train_batches,
)
from dca_triton.cli.options import DataOptions
from dca_triton.description import Description

FGVC = DataOptions("orl-fgvc", size=(64, 64), resize=70, batch_size=20, workers=0)
REID = DataOptions("orl-reid", size=(64, 32), batch_size=12, photos=3, workers=0)


def test_photos_are_normalized_as_the_backbone_was_pretrained() -> None:
    assert normalization("vit_base_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("deit_tiny_patch16_224") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    halves, imagenet = (
        load_splits(FGVC, name).test[0]["image"] for name in ("vit_base_patch16_224", "deit_tiny_patch16_224")
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization("deit_tiny_patch16_224"))
    torch.testing.assert_close(halves * 0.5 + 0.5, imagenet * std + mean)


def test_mean_and_deviation_of_the_options_win() -> None:
    own = replace(FGVC, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    default, changed = (load_splits(data, "deit_tiny_patch16_224") for data in (FGVC, own))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalization("deit_tiny_patch16_224"))
    for part in ("test", "train"):
        assert getattr(changed, part).transform is not None
    pixels = default.test[0]["image"] * std + mean
    expected = (pixels - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
    torch.testing.assert_close(changed.test[0]["image"], expected)
    said = describe(changed, own, "deit_tiny_patch16_224")
    assert (said.mean, said.std) == (own.mean, own.std)
    half = replace(FGVC, std=(0.5, 0.5, 0.5))
    assert normalization("deit_tiny_patch16_224", half) == ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    torch.manual_seed(0)
    first = [changed.train[i]["image"] for i in range(3)]
    torch.manual_seed(0)
    again = [default.train[i]["image"] for i in range(3)]
    assert not any(map(torch.equal, first, again))


def test_stronger_augmentation_on_demand() -> None:
    plain, strong = (
        load_splits(data, "test_vit").train.transform
        for data in (FGVC, replace(FGVC, rand_augment="rand-m9-mstd0.5", erase=0.25))
    )
    assert "RandAugment" not in repr(plain) and "RandomErasing" not in repr(plain)
    assert "RandAugment('rand-m9-mstd0.5')" in repr(strong) and "RandomErasing(p=0.25" in repr(strong)
    with pytest.raises(
        ValueError, match=r"rand_augment must be null .*; --data\.erase must be 0 for identities"
    ):
        load_splits(replace(REID, rand_augment="rand-m9", erase=0.5), "test_vit")


def test_evaluation_crops_the_center_on_demand() -> None:
    plain, center = (
        load_splits(replace(FGVC, test_crop=crop), "test_vit").test[0]["image"]
        for crop in ("resize", "center")
    )
    assert torch.equal(plain, load_splits(FGVC, "test_vit").test[0]["image"])  # the default
    whole = load_splits(replace(FGVC, size=(70, 70)), "test_vit").test[0]["image"]
    assert torch.equal(center, whole[:, 3:67, 3:67]) and not torch.equal(center, plain)


def test_a_description_leaves_out_defaults_and_takes_older_ones() -> None:
    splits = load_splits(FGVC, "test_vit")
    old = describe(splits, FGVC, "test_vit")
    assert "test_crop" not in old.plain() and Description.of(old.plain(), "a.pt") == old
    new = describe(splits, replace(FGVC, test_crop="center"), "test_vit")
    assert new.plain() == old.plain() | {"test_crop": "center"}
    assert Description.of(new.plain(), "a.pt") == new
    with pytest.raises(ValueError, match=r"description in a\.pt: test_crop must be 'center' or 'resize'"):
        Description.of(new.plain() | {"test_crop": "top"}, "a.pt")
    with pytest.raises(ValueError, match=r"description in a\.pt must hold .* got none of size"):
        Description.of({name: value for name, value in new.plain().items() if name != "size"}, "a.pt")
    with pytest.raises(ValueError, match=r"description in a\.pt must hold .* and zoom"):
        Description.of(new.plain() | {"zoom": 2}, "a.pt")


def test_batches_of_categories_hold_every_photo_once() -> None:
    splits = load_splits(FGVC, "test_vit")
    labels = torch.cat([batch["label"] for batch in train_batches(splits, FGVC)])
    assert Counter(labels.tolist()) == {label: 6 for label in range(40)}
    assert sum(len(batch["label"]) for batch in evaluation_batches(splits.test, FGVC)) == 160


def test_batches_of_identities() -> None:
    splits = load_splits(REID, "test_vit")
    for batch in train_batches(splits, REID):
        assert batch["image"].shape == (12, 3, 64, 32)
        assert sorted(Counter(batch["label"].tolist()).values()) == [3, 3, 3, 3]


def test_held_out_photos_are_scored_instead_of_the_test_part() -> None:
    options = DataOptions("orl-fgvc", size=(64, 64), resize=64, batch_size=40, workers=0, holdout=1)
    splits = load_splits(options, "test_vit")
    model = build_model(
        splits, options, {"backbone_name": "test_vit", "layout": "paper", "pretrained": False}
    )
    seen = []
    model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    found = scores(model, splits, options, progress=False)
    assert sum(seen) == 40
    assert (model.num_classes, model.task_type) == (40, "fgvc")
    assert 0 <= found["sum_top1"] <= found["sum_top5"] <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"size": (64, 32), "resize": 50},
            ["size must be a square", "got (64, 32)", "resize must be at least size, 64, got 50"],
        ),
        (
            {"batch_size": 0, "workers": -1, "photos": 0},
            ["batch_size must be", "got 0", "workers must be", "got -1", "photos must be"],
        ),
        ({"name": "orl-reid", "batch_size": 10}, ["batch_size must be a multiple of photos=4, got 10"]),
    ],
)
def test_every_fault_at_once(options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_splits(DataOptions(**({"name": "orl-fgvc"} | options)), "test_vit")
    assert all(word in str(caught.value) for word in words)
