"""Metric losses against pytorch-metric-learning's own calls, by themselves and in training."""

import math

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import LpDistance
from small_training import Photos, bits, small_model, small_trainer
from torch import Tensor
from torch.nn import functional as F

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.training import BranchLoss, training_loader
from dca_triton.training.losses import BRANCHES
from dca_triton.training.metric_losses import METRIC_LOSSES

WIDTHS = {"sa": 5, "glca": 6, "pwca": 5}
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def outputs_of(scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    outputs = {}
    for branch, width in WIDTHS.items():
        outputs[f"{branch}_logits"] = torch.randn(8, 4, generator=draw)
        outputs[f"{branch}_embedding"] = scale * torch.randn(8, width, generator=draw)
    return outputs


def metric_part(name: str, outputs: dict[str, Tensor]) -> tuple[BranchLoss, dict[str, Tensor]]:
    torch.manual_seed(0)
    loss = BranchLoss("reid", metric_loss=name, num_classes=4, widths=WIDTHS)  # type: ignore[arg-type]
    found = loss(outputs, LABELS)
    return loss, {b: found[b] - F.cross_entropy(outputs[f"{b}_logits"], LABELS) for b in found}


def soft_margin(x: Tensor) -> Tensor:
    """log(1 + exp(furthest positive - nearest negative)), the mean over all anchors."""
    distances = torch.cdist(x, x)
    same = LABELS[:, None] == LABELS
    positive = distances.masked_fill(~same, -math.inf).amax(1)
    negative = distances.masked_fill(same, math.inf).amin(1)
    return torch.logaddexp(torch.zeros(()), positive - negative).mean()


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_each_is_pytorch_metric_learnings_own(name):
    outputs = outputs_of()
    loss, found = metric_part(name, outputs)
    for branch in BRANCHES:
        x = outputs[f"{branch}_embedding"]
        if name == "triplet":
            distance = LpDistance(normalize_embeddings=False)
            own = losses.TripletMarginLoss(margin=0.3, distance=distance)
            truth = own(x, LABELS, miners.BatchHardMiner(distance=distance)(x, LABELS))
        elif name == "soft_margin_triplet":
            truth = soft_margin(x)
        elif name == "circle":
            truth = losses.CircleLoss(m=0.25, gamma=128)(x, LABELS)
        else:
            make = {"arcface": losses.ArcFaceLoss, "cosface": losses.CosFaceLoss}[name]
            own = make(num_classes=4, embedding_size=WIDTHS[branch])
            own.load_state_dict(loss.metric[branch].state_dict())
            truth = own(x, LABELS)
        torch.testing.assert_close(found[branch], truth, rtol=1e-5, atol=1e-5)
    assert len({x.item() for x in found.values()}) == 3


def test_the_soft_margin_averages_triplets_that_are_far_apart_too():
    """Where the loss of a triplet is 0 in float32."""
    outputs = outputs_of()
    x = outputs["sa_embedding"] = 0.1 * outputs["sa_embedding"] + 1000.0 * LABELS[:, None]
    x[7] = 1500.0
    _, found = metric_part("soft_margin_triplet", outputs)
    torch.testing.assert_close(found["sa"], soft_margin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_a_batch_without_triplets(name):
    loss = BranchLoss("reid", metric_loss=name, num_classes=4, widths=WIDTHS)  # type: ignore[arg-type]
    outputs = {k: x[:1].requires_grad_() for k, x in outputs_of().items()}
    total = sum(loss(outputs, LABELS[:1]).values())
    total.backward()
    assert total.isfinite()


def test_only_the_losses_of_classes_have_weights():
    for name in METRIC_LOSSES:
        shapes = {key: tuple(x.shape) for key, x in metric_part(name, outputs_of())[0].state_dict().items()}
        weighted = name in ("arcface", "cosface")
        assert shapes == ({f"metric.{b}.W": (WIDTHS[b], 4) for b in BRANCHES} if weighted else {})
    assert not BranchLoss("fgvc", metric_loss="arcface").state_dict()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metric_loss": "center"}, "metric_loss must be 'triplet' or .* got 'center'"),
        ({"metric_loss": None}, "metric_loss must be .* got None"),
        (
            {"metric_loss": "arcface"},
            "num_classes must be an integer >= 1, got None; widths must be a dict of .*, got None",
        ),
        (
            {"metric_loss": "cosface", "num_classes": 0, "widths": {"sa": 0}},
            r"num_classes must be .* got 0; widths must be .* got \{'sa': 0\}",
        ),
        ({"metric_loss": "cosface", "num_classes": 2, "widths": {"x": 3}}, "widths must be"),
    ],
)
def test_arguments_that_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BranchLoss("reid", **options)


def reid_trainer(name: str = "arcface", **options):
    batches = training_loader(Photos(), 8, per_identity=2, workers=0)
    model = small_model(task_type="reid", **options.pop("model", {}))
    return small_trainer(batches, model, metric_loss=name, **options)


def test_weights_of_the_loss_learn_and_resume_with_their_bits(tmp_path):
    options = {"model": {"branches": ("sa", "glca"), "sa_readout": "both"}}
    trainer = reid_trainer(**options)
    widths = {"sa": 2 * trainer.model.embed_dim, "glca": trainer.model.embed_dim}
    begun = {name: x.clone() for name, x in trainer.branch_loss.state_dict().items()}
    assert {name: len(x) for name, x in begun.items()} == {f"metric.{b}.W": n for b, n in widths.items()}
    torch.manual_seed(9)
    assert bits(reid_trainer(**options).branch_loss.state_dict()) == bits(begun), "they depend on the seed"
    assert bits(reid_trainer(**options, seed=1).branch_loss.state_dict()) != bits(begun)
    trainer.train(2, tmp_path / "truth")
    state = load_checkpoint(tmp_path / "truth" / "checkpoint.pt")
    learned = state["branch_loss_state_dict"]
    assert learned.keys() == begun.keys() and all((learned[name] != begun[name]).any() for name in begun)
    reid_trainer(**options).train(2, tmp_path / "on", resume=tmp_path / "truth" / "checkpoint.1.pt")
    assert bits(load_checkpoint(tmp_path / "on" / "checkpoint.pt")) == bits(state)


def test_another_loss_is_refused_on_a_resume(tmp_path):
    reid_trainer("triplet").train(1, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["branch_loss_state_dict"] == {}
    del state["branch_loss_state_dict"], state["settings"]["metric_loss"]  # as earlier versions wrote it
    save_checkpoint(tmp_path / "old.pt", state)
    with pytest.raises(ValueError, match=r"from: metric_loss must be 'triplet', got 'circle'$"):
        reid_trainer("circle").train(2, tmp_path / "on", resume=tmp_path / "old.pt")
    reid_trainer("triplet").train(2, tmp_path / "on", resume=tmp_path / "old.pt")


def test_a_checkpoint_without_the_weights_is_refused(tmp_path):
    reid_trainer().train(1, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    for other in ({}, {"metric.sa.W": torch.ones(1)}, 3):
        save_checkpoint(tmp_path / "crafted.pt", state | {"branch_loss_state_dict": other})
        with pytest.raises(ValueError, match=r"crafted\.pt cannot be resumed from: .*(missing|must be)"):
            reid_trainer().train(2, tmp_path / "on", resume=tmp_path / "crafted.pt")


@pytest.mark.parametrize("name", ["soft_margin_triplet", "circle", "cosface"])
def test_each_trains_and_differs_from_the_default(name, tmp_path):
    found = [reid_trainer(loss).train(1, tmp_path / loss)[0] for loss in ("triplet", name)]
    assert math.isfinite(found[1]["total_loss"]) and found[0]["sa_loss"] != found[1]["sa_loss"]


def test_categories_have_no_metric_loss():
    with pytest.raises(
        ValueError, match=r"^metric_loss must be 'triplet', .*'fgvc', got 'circle'; min_lr must"
    ):
        small_trainer(metric_loss="circle", min_lr=1.0)
