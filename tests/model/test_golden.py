"""A real run of the reference, matched: outputs to 1e-5, gradients to 1e-4, selected rows exactly."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dca_triton.model import DualAttentionModel, explain
from dca_triton.training import UncertaintyWeightedLoss


@pytest.fixture(scope="module")
def golden():
    return torch.load(Path(__file__).parents[1] / "golden/fgvc_h4.pt", weights_only=True)


@pytest.fixture
def model(golden):
    model = DualAttentionModel(**golden["kwargs"], pretrained=False)
    model.load_state_dict(golden["state_dict"])
    return model


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_evaluation(golden, model):
    model.eval()
    with torch.no_grad():
        outputs = model(golden["images"])
    for name, value in golden["eval"].items():
        close(outputs[name], value, 1e-5)
    found = explain(model, golden["images"])
    close(found.rollout, golden["rollout"][:, 0], 1e-5)
    assert torch.equal(found.selected, golden["selected"])


@pytest.mark.parametrize("class_tokens_only", [False, True])
@pytest.mark.parametrize("kind", ["train_pair_images", "train_in_batch"])
def test_training_step(golden, model, kind, class_tokens_only):
    expected = golden[kind]
    pairs = (
        {"x_pair": golden["pair_images"]}
        if kind == "train_pair_images"
        else {"partner_index": golden["pair_index"]}
    )
    loss = UncertaintyWeightedLoss()
    with torch.no_grad():
        loss.log_vars.copy_(torch.tensor([0.1, -0.2, 0.3]))
    outputs = model.train()(golden["images"], **pairs, class_tokens_only=class_tokens_only)
    for branch, logits in expected["logits"].items():
        close(outputs[f"{branch}_logits"], logits, 1e-5)
    losses = {b: F.cross_entropy(outputs[f"{b}_logits"], golden["labels"]) for b in ("sa", "glca", "pwca")}
    total = loss(losses)["total_loss"]
    close(total, expected["total_loss"].reshape(()), 1e-5)
    total.backward()
    close(loss.log_vars.grad, expected["log_vars_grad"], 1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in expected["grads"].items():
        close(gradients[name], gradient, 1e-4)
