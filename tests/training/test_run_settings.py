"""A resumed run has the settings of its checkpoint, or the error names every difference with both values."""

import math
from collections import OrderedDict

import pytest
import torch
from small_training import Photos, bits, plain_loader, small_model, small_trainer
from torch.utils.data import DataLoader, Subset

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.data import ImageDataset, ImageRecord
from dca_triton.training import PairSampler, training_loader
from dca_triton.training.run_settings import describe_batches, differences, model_arguments, plain


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    small_trainer().train(1, folder)
    return folder


def noise(images, generator):
    return images + torch.rand(images.shape, generator=generator)


class Turned(Photos):
    """Other photos by their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = self.labels.flip(0)


DIFFERENT = {
    "lr": (lambda: small_trainer(lr=0.01), r"lr must be 0\.001, got 0\.01"),
    "optimizer": (lambda: small_trainer(optimizer="sgd"), "optimizer must be 'adamw', got 'sgd'"),
    "accumulate": (lambda: small_trainer(accumulate=2), "accumulate must be 1, got 2"),
    "precision": (lambda: small_trainer(precision="bf16"), "precision must be 'no', got 'bf16'"),
    "skip": (lambda: small_trainer(on_nonfinite="skip"), "on_nonfinite must be 'stop', got 'skip'"),
    "average": (lambda: small_trainer(ema_decay=0.5), r"ema_decay must be None, got 0\.5"),
    "augment": (lambda: small_trainer(augment=noise), "augment must be 'None', got '<function noise>'"),
    "pairs": (
        lambda: small_trainer(pairs=PairSampler("mixed", 0.25)),
        r"pairs\.strategy must be 'random', got 'mixed'; pairs\.hard_ratio must be 0\.5, got 0\.25",
    ),
    "batch size": (
        lambda: small_trainer(training_loader(Photos(), 4, workers=0)),
        r"; batches\.batch_size must be 8, got 4",
    ),
    "seed of the order": (
        lambda: small_trainer(training_loader(Photos(), 8, workers=0, seed=3)),
        r"batches\.sampler\.seed must be 0, got 3",
    ),
    "identities": (
        lambda: small_trainer(training_loader(Photos(), 8, per_identity=2, workers=0)),
        r"batches\.batch_sampler\.type must be '.*BatchSampler', got '.*IdentitySampler'",
    ),
    "fewer photos": (
        lambda: small_trainer(training_loader(Photos(18), 8, workers=0)),
        r"batches\.photos must be 20, got 18",
    ),
    "other photos": (
        lambda: small_trainer(training_loader(Turned(), 8, workers=0)),
        "batches must give the same photos as before, with the same labels in the same order, got others",
    ),
    "kind of loader": (lambda: small_trainer(plain_loader()), r"batches\.sampler\.type must be"),
    "no loader": (
        lambda: small_trainer([next(iter(plain_loader()))]),
        r"batches\.length must be 3, got 1; batches\.type must be",
    ),
    "top_k_ratio": (
        lambda: small_trainer(model=small_model(top_k_ratio=0.25)),
        r"model\.top_k_ratio must be 0\.5, got 0\.25",
    ),
    "drop rates": (
        lambda: small_trainer(model=small_model(drop_rate=0.1, drop_path_rate=0.2)),
        r"model\.drop_rate must be 0\.0, got 0\.1; model\.drop_path_rate must be 0\.1, got 0\.2",
    ),
    "task": (
        lambda: small_trainer(model=small_model(task_type="reid")),
        "model.task_type must be 'fgvc', got 'reid'",
    ),
    "timm's arguments": (
        lambda: small_trainer(model=small_model(mlp_ratio=2.0)),
        r"model\.mlp_ratio must be nothing, got 2\.0",
    ),
    "description": (
        lambda: small_trainer(description={"classes": ["a", "b"]}),
        r"description\.classes must be nothing, got \['a', 'b'\]",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_must_not_change_is_named_with_both_values(what, begun):
    make, sentence = DIFFERENT[what]
    before = {path: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(ValueError, match=rf"checkpoint\.pt cannot be resumed from: .*{sentence}") as error:
        make().train(2, begun, resume="auto")
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


def test_frozen_parameters_are_compared(begun):
    model = small_model()
    model.freeze_backbone()
    with pytest.raises(
        ValueError,
        match=r"the parameters that learn \(requires_grad\) must be the same as before, got \d+ that do not "
        r"learn now \(backbone\.[\w.]+, backbone\.[\w.]+, backbone\.[\w.]+, \.\.\.\)$",
    ):
        small_trainer(model=model).train(2, begun, resume="auto")


def test_what_may_change(begun, tmp_path):
    """Including spelling: lists as tuples, other classes of dicts."""
    trainer = small_trainer(
        training_loader(Photos(), 8, workers=1),
        small_model(cache_attention_rollout=False, backend="torch"),
        evaluate=lambda: {"top1": 0.5},
        evaluate_every=1,
        save_every=2,
        keep_last=3,
        checkpoint_blocks=True,
        best_by="top1",
    )
    history = trainer.train(3, tmp_path, resume=begun / "checkpoint.pt")
    assert [line["epoch"] for line in history] == [1, 2, 3]


def test_descriptions(tmp_path):
    description = {"classes": ("a", "b"), "mean": [0.5, 0.25], "size": 32, "more": {"x": None, "y": True}}
    trainer = small_trainer(description=description)
    description["size"] = 64  # the caller's own dict
    trainer.train(1, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    expected = {"classes": ["a", "b"], "mean": [0.5, 0.25], "size": 32, "more": {"x": None, "y": True}}
    assert state["description"] == expected
    small_trainer(description=OrderedDict(expected)).train(2, tmp_path, resume="auto")
    other = expected | {"classes": ["a", "c"], "more": {"x": 0}}
    with pytest.raises(
        ValueError,
        match=r"description\.classes\[1\] must be 'b', got 'c'; description\.more\.x must be None, got 0; "
        r"description\.more\.y must be True, got nothing",
    ):
        small_trainer(description=other).train(3, tmp_path, resume="auto")


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"mean": torch.ones(3)}, r"description\.mean must be None, True"),
        ({"a": [1, {"b": {1: 2}}]}, r"description\.a\[1\]\.b must be"),
        (
            {"x": math.nan, "y": {3}},
            r"description\.x must be .* got nan; description\.y must be .* got \{3\}",
        ),
        ([1, 2], r"description must be a dict or None, got \[1, 2\]"),
        ({"path": small_model}, r"description\.path must be"),
    ],
)
def test_descriptions_that_are_refused(description, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        small_trainer(description=description, lr=-1)
    assert "lr must be" in str(error.value)


def test_a_checkpoint_holds_the_arguments_of_its_model(tmp_path):
    model = small_model(img_size=(16, 32), layout="reference")
    small_trainer(
        model=model, batches=[{"image": torch.zeros(2, 3, 16, 32), "label": torch.tensor([0, 1])}]
    ).train(1, tmp_path)
    arguments = load_checkpoint(tmp_path / "checkpoint.pt")["model_arguments"]
    assert arguments["img_size"] == [16, 32] and arguments["layout"] == "reference"
    assert arguments["backbone_name"] == "test_vit" and arguments["num_classes"] == 4
    assert arguments["task_type"] == "fgvc" and arguments["patch_size"] == 8
    again = type(model)(**arguments | {"img_size": tuple(arguments["img_size"])})
    again.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt")["model_state_dict"])


def test_arguments_that_are_not_plain_are_not_kept():
    assert model_arguments(small_model(norm_layer=torch.nn.LayerNorm)) is None
    assert model_arguments(torch.nn.Linear(1, 1)) is None


def test_checkpoints_of_before_resume_and_are_compared_by_what_they_hold(tmp_path):
    """Without model_arguments, description and the newer settings."""
    small_trainer().train(1, tmp_path / "new")
    small_trainer().train(2, tmp_path / "truth")
    state = load_checkpoint(tmp_path / "new" / "checkpoint.pt")
    del state["model_arguments"], state["description"]
    for name in ("on_nonfinite", "best_by", "augment", "pairs", "learning_parameters", "batches"):
        del state["settings"][name]
    (tmp_path / "old").mkdir()
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", state)
    small_trainer().train(2, tmp_path / "old", resume="auto")
    ours, truth = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("old", "truth"))
    assert bits(ours) == bits(truth)
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", state)
    with pytest.raises(ValueError, match=r"lr must be 0\.001, got 0\.5"):
        small_trainer(lr=0.5).train(2, tmp_path / "old", resume="auto")


def records(root, names, label=0):
    return [ImageRecord(root / name, label) for name in names]


def test_photos_are_told_apart_by_name_and_label_wherever_they_lie(tmp_path):
    names = ["a/1.jpg", "b/2.jpg", "b/3.jpg"]

    def described(root, names, label=0, **options):
        return describe_batches(DataLoader(ImageDataset(records(root, names, label), **options)))

    here = described(tmp_path, names)
    assert described(tmp_path / "moved", names) == here
    assert described(tmp_path, names[:2])["photos"] == 2
    for other in (described(tmp_path, ["a/1.jpg", "b/2.jpg", "b/4.jpg"]), described(tmp_path, names, 1)):
        assert other["content"] != here["content"]
    assert described(tmp_path, names, transform=torch.nn.Identity())["transform"] == "Identity()"


def test_subsets_are_told_apart():
    first, second = (describe_batches(DataLoader(Subset(Photos(), part))) for part in ([0, 1], [2, 3]))
    assert first["photos"] == second["photos"] and first["content"] != second["content"]


def test_long_values_are_shown_where_they_differ():
    before, now = "x" * 500 + "photo 3", "x" * 500 + "photo 4"
    (sentence,) = differences("transform", before, now)
    assert "photo 3" in sentence and "photo 4" in sentence and len(sentence) < 300


def test_plain_values_are_copied():
    value = {"a": [1, (2, 3)], "b": {"c": "d"}}
    faults: list[str] = []
    assert plain("x", value, faults) == {"a": [1, [2, 3]], "b": {"c": "d"}} and not faults


def test_what_happens_to_corrupt_photos_is_compared():
    def make(on_corrupt):
        photos = Photos()
        photos.on_corrupt = on_corrupt
        return small_trainer(training_loader(photos, 8, workers=0)).run.settings

    (sentence,) = differences("", make("raise"), make("skip"))
    assert sentence == "on_corrupt must be 'raise', got 'skip'"
    assert small_trainer().run.settings["on_corrupt"] is None
