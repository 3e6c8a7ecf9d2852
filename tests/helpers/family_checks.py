"""What holds for the models of every family of timm; the tests of each family call it with their own."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import export_onnx


def check_gradients(
    model: DualAttentionModel, plain: nn.Module, found: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    """The gradients of the backbone's weights through tokens `found` are those through timm's `expected`."""
    weights, truth = dict(model.backbone.model.named_parameters()), dict(plain.named_parameters())
    ours = torch.autograd.grad(sum(x.sin().sum() for x in found), [*weights.values()])
    right = torch.autograd.grad(sum(x.sin().sum() for x in expected), [truth[name] for name in weights])
    for name, gradient, other in zip(weights, ours, right, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def step(model: nn.Module, images: Tensor, partners: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Logits of a training step, and the gradient of every parameter."""
    outputs = model(images, partner_index=partners, class_tokens_only=True)
    logits = {name: value for name, value in outputs.items() if name.endswith("_logits")}
    loss = sum((i + 1) * x.square().sum() for i, x in enumerate(logits.values()))
    return logits, list(torch.autograd.grad(loss, [*model.parameters()]))


def check_pairs(model: DualAttentionModel, images: Tensor) -> None:
    """Every parameter is trained, and pairs of images (4, 3, h, w) are rows of the batch."""
    joint, gradients = step(model, images, torch.tensor([2, 3, 0, 1]))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    outputs = model(images[:2], images[2:], class_tokens_only=True)
    assert joint.keys() == {f"{branch}_logits" for branch in model.branches}
    for name, logits in joint.items():
        torch.testing.assert_close(outputs[name], logits[:2])


def check_checkpointing_and_compilation(model: DualAttentionModel, images: Tensor, partners: Tensor) -> None:
    """Neither changes a training step."""
    expected = step(model, images, partners)
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(model, images, partners), expected)
    model.set_grad_checkpointing(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, images, partners), expected)


def check_onnx(model: DualAttentionModel, images: Tensor, folder: Path) -> None:
    """The exported file gives the outputs of the model in evaluation."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(model, folder / "model.onnx")
    found = runtime.InferenceSession(folder / "model.onnx").run(None, {"x": images.numpy()})
    for ours, expected in zip(map(torch.as_tensor, found), model(images).values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def check_lora(model: DualAttentionModel, targets: list[str], images: Tensor, partners: Tensor) -> None:
    """LoRA of the linear layers `targets` changes a training step as its merged weights do."""
    peft = pytest.importorskip("peft")
    before = copy.deepcopy(model).train()(images, partner_index=partners)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).double().train()
    after = copy.deepcopy(adapted).merge_and_unload()(images, partner_index=partners)
    assert not torch.allclose(before["pwca_logits"], after["pwca_logits"], atol=1e-3)
    torch.testing.assert_close(adapted(images, partner_index=partners), after)
