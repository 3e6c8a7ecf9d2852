"""The backbone frozen for the first epochs, and mixed images with soft labels."""

import math

import pytest
import torch
from small_training import Photos, bits, small_model, small_trainer
from torch.nn import functional as F

from dca_triton.checkpoint import load_checkpoint
from dca_triton.training import BranchLoss, training_loader
from dca_triton.training.losses import BRANCHES


def weights_by_epoch(folder, epochs: int = 3, trainer=None, **options) -> list[dict]:
    """The weights before the first epoch and after each."""
    model = small_model()
    found = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    trainer = small_trainer(
        model=model,
        evaluate=lambda: (
            found.append({name: p.detach().clone() for name, p in model.named_parameters()}) or {"x": 0.0}
        ),
        evaluate_every=1,
        **options,
    )
    trainer.train(epochs, folder)
    return found


def moved(before: dict, after: dict) -> set[bool]:
    """Whether parameters of the backbone have other bits."""
    return {not torch.equal(x, after[name]) for name, x in before.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_frozen_backbone_keeps_its_bits_and_then_learns(optimizer, tmp_path):
    options = {"optimizer": optimizer, "clip_grad": 1.0, "accumulate": 2}
    begun, first, second, third = weights_by_epoch(tmp_path / "run", freeze_epochs=2, **options)
    assert moved(begun, first) == moved(first, second) == {False}
    assert True in moved(second, third)
    for head in ("sa_head.weight", "pwca_head.weight", "glca_blocks.0.mlp.fc1.weight"):
        assert not torch.equal(begun[head], first[head]) and not torch.equal(first[head], second[head])
    begun, first, *_ = weights_by_epoch(tmp_path / "control", 1, **options)
    assert moved(begun, first) == {True}


def test_the_norm_that_is_clipped_is_that_of_what_learns(tmp_path):
    norms = []
    trainer = small_trainer(optimizer="sgd", clip_grad=0.01, lr=1.0, weight_decay=0.0, freeze_epochs=1)
    step = trainer.run.optimizer.step

    def watched():
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads])).item())
        step()

    trainer.run.optimizer.step = watched
    trainer.train(1, tmp_path)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_a_run_resumed_within_and_after_the_frozen_epochs(tmp_path):
    options = {"freeze_epochs": 2, "mixup": 0.8, "cutmix": 1.0}
    small_trainer(keep_last=9, **options).train(3, tmp_path / "truth")
    truth = load_checkpoint(tmp_path / "truth" / "checkpoint.pt")
    for back in (1, 2):
        small_trainer(keep_last=9, **options).train(
            3, tmp_path / str(back), resume=tmp_path / "truth" / f"checkpoint.{back}.pt"
        )
        assert bits(load_checkpoint(tmp_path / str(back) / "checkpoint.pt")) == bits(truth)
    with pytest.raises(
        ValueError, match=r"freeze_epochs must be 2, got 0; mixup must be 0\.8, got 0\.0; cutmix must be 1\.0"
    ):
        small_trainer().train(4, tmp_path / "truth", resume="auto")


def test_soft_labels_are_the_mixture_of_two_losses():
    draw = torch.Generator().manual_seed(1)
    outputs = {f"{b}_logits": torch.randn(6, 4, generator=draw) for b in BRANCHES}
    first, second = torch.arange(6) % 4, (torch.arange(6) + 1) % 4
    soft = 0.7 * F.one_hot(first, 4).float() + 0.3 * F.one_hot(second, 4).float()
    for smoothing in (0.0, 0.1):
        loss = BranchLoss(label_smoothing=smoothing)
        mixed, one, other = loss(outputs, soft), loss(outputs, first), loss(outputs, second)
        for branch in BRANCHES:
            torch.testing.assert_close(mixed[branch], 0.7 * one[branch] + 0.3 * other[branch])


@pytest.mark.parametrize(
    ("task", "labels", "sentence"),
    [
        ("fgvc", torch.ones(6, 5), r"outputs\['sa_logits'\] must be .* with B = 6, K = 5"),
        ("fgvc", torch.ones(6), r"labels must be a dense int64 tensor \(B,\)"),
        ("fgvc", torch.ones(6, 4, 1), r"labels must be a dense int64 tensor \(B,\)"),
        ("reid", torch.ones(6, 4), r"labels must be a dense int64 tensor \(B,\)"),
    ],
)
def test_soft_labels_that_are_refused(task, labels, sentence):
    outputs = {"sa_logits": torch.zeros(6, 4), "sa_features": torch.zeros(6, 2, 3)}
    with pytest.raises(ValueError, match=sentence):
        BranchLoss(task)(outputs, labels)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_changes_images_and_labels_and_odd_batches_train(options, tmp_path):
    batches = training_loader(Photos(19), 8, workers=0)
    seen = []
    for option in (options, {}):
        trainer = small_trainer(batches, **option)
        loss = trainer.branch_loss.forward

        def watched(outputs, labels, loss=loss):
            seen.append((labels.dtype, tuple(labels.shape)))
            return loss(outputs, labels)

        trainer.branch_loss.forward = watched
        line = trainer.train(1, tmp_path / str(bool(option)))[0]
        assert math.isfinite(line["total_loss"])
    soft, hard = seen[:3], seen[3:]
    assert soft == [(torch.float32, (8, 4))] * 2 + [(torch.float32, (3, 4))]
    assert hard == [(torch.int64, (8,))] * 2 + [(torch.int64, (3,))]


def test_identities_are_not_mixed():
    with pytest.raises(
        ValueError, match=r"^mixup must be 0 for a model of 'reid', got 0\.8; cutmix must be 0 .* got 1\.0$"
    ):
        small_trainer(model=small_model(task_type="reid"), mixup=0.8, cutmix=1.0)
