"""Changes of modules take effect: adapters, quantization, parametrizations, hooks, wrappers."""

import copy
from collections.abc import Callable

import pytest
import torch
from small_training import small_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, spectral_norm

from dca_triton import DualAttentionModel

LAYOUTS = pytest.mark.parametrize("layout", ["reference", "paper"])
PAIRS = pytest.mark.parametrize("pairs", ["x_pair", "partner_index"])
BRANCHES = ("sa", "glca", "pwca")
IMAGES, OTHERS = torch.randn(
    2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64
).unbind()


def build(layout: str) -> DualAttentionModel:
    return small_model(layout=layout, drop_path_rate=0.0).double().train()


def run(model: nn.Module, pairs: str, images: Tensor = IMAGES) -> tuple[dict[str, Tensor], Tensor]:
    """Logits, and the gradient of the images, which passes every module that they pass."""
    images = images.clone().requires_grad_()
    paired = {"x_pair": OTHERS} if pairs == "x_pair" else {"partner_index": torch.tensor([2, 0, -1])}
    outputs = model(images, **paired)
    logits = {branch: outputs[f"{branch}_logits"] for branch in BRANCHES}
    sum(value.square().sum() for value in logits.values()).backward()
    return {branch: value.detach() for branch, value in logits.items()}, images.grad


def equal(ours: nn.Module, truth: nn.Module, pairs: str, **tolerance: float) -> None:
    for one, other in zip(run(ours, pairs), run(truth, pairs), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def linears(model: nn.Module, *names: str) -> list[nn.Linear]:
    return [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(names)]


@LAYOUTS
@PAIRS
def test_lora_equals_its_merged_model(layout: str, pairs: str) -> None:
    peft = pytest.importorskip("peft")
    names = ["qkv", "proj", "fc1"] + (["q_proj", "k_proj", "v_proj"] if layout == "reference" else [])
    plain = build(layout)
    targets = [
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(names))
    ]
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(build(layout), config).double().train()
    for parameter in adapted.parameters():
        parameter.requires_grad_()
    merged = copy.deepcopy(adapted).merge_and_unload().train()
    before, _ = run(plain, pairs)
    after, _ = run(merged, pairs)
    assert not torch.allclose(before["pwca"], after["pwca"], atol=1e-3), "the adapter changes something"
    merged.zero_grad()
    equal(adapted, merged, pairs)
    # The gradient of B in W + s B A is s dW Aᵀ.
    weights = dict(merged.named_parameters())
    for name in targets:
        lora = adapted.get_submodule(f"base_model.model.{name}")
        a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
        expected = 4 * weights[f"{name}.weight"].grad @ a.T
        torch.testing.assert_close(b.grad, expected)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "weight", Doubled())


def pruned(linear: nn.Linear) -> None:
    prune.l1_unstructured(linear, "weight", amount=0.3)


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda module, inputs, output: 1.5 * output)


def replaced(linear: nn.Linear) -> None:
    linear.forward = lambda x: 1.5 * nn.functional.linear(x, linear.weight, linear.bias)


def merged_weight(change: Callable[[nn.Linear], None], linear: nn.Linear) -> None:
    """What the change makes of the weight and bias, written into a plain Linear."""
    changed = copy.deepcopy(linear)
    change(changed)
    with torch.no_grad():
        zero = torch.zeros(1, linear.in_features, dtype=torch.float64)
        bias = changed(zero)[0]
        weight = changed(torch.eye(linear.in_features, dtype=torch.float64)) - bias
        linear.weight.copy_(weight.T)
        if linear.bias is not None:
            linear.bias.copy_(bias)


@LAYOUTS
@PAIRS
@pytest.mark.parametrize("change", [parametrized, pruned, hooked, replaced])
def test_a_changed_linear_equals_its_plain_twin(layout: str, pairs: str, change: Callable) -> None:
    names = ("qkv", "q_proj", "k_proj", "v_proj")
    ours, truth = build(layout), build(layout)
    for linear in linears(ours, *names):
        change(linear)
    for linear in linears(truth, *names):
        merged_weight(change, linear)
    changed, _ = run(truth, pairs)
    assert not torch.equal(changed["pwca"], run(build(layout), pairs)[0]["pwca"])
    equal(ours, truth, pairs)


@LAYOUTS
def test_spectral_norm_old_and_new(layout: str) -> None:
    """In evaluation their weights stand still: one equals the other."""
    for norm in (spectral_norm, nn.utils.parametrizations.spectral_norm):
        ours, truth = build(layout), build(layout)
        for linear in linears(ours, "qkv", "q_proj", "k_proj", "v_proj"):
            norm(linear)
            linear.eval()
        with torch.no_grad():
            pairs = zip(
                linears(ours, "qkv", "q_proj", "k_proj", "v_proj"),
                linears(truth, "qkv", "q_proj", "k_proj", "v_proj"),
                strict=True,
            )
            for linear, plain in pairs:
                zero = torch.zeros(1, linear.in_features, dtype=torch.float64)
                eye = torch.eye(linear.in_features, dtype=torch.float64)
                plain.weight.copy_((linear(eye) - linear(zero)).T)
        equal(ours, truth, "x_pair", rtol=1e-6, atol=1e-8)


@LAYOUTS
def test_global_hooks_see_every_linear(layout: str) -> None:
    seen: list[nn.Module] = []
    model = build(layout)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(m))
    try:
        run(model, "x_pair")
    finally:
        handle.remove()
    called = linears(model, "qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc2")
    if layout == "reference":
        twice = [m for n, m in model.named_modules() if n.startswith("sa_blocks") and n.endswith("qkv")]
        assert all(seen.count(m) == 2 for m in twice), "own rows, then the partners'"
    assert {id(m) for m in called} <= {id(m) for m in seen}


@LAYOUTS
def test_int8_weights_of_torchao(layout: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = small_model(layout=layout).eval()
    truth = copy.deepcopy(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                plain = truth.get_submodule(name)
                plain.weight.copy_(module.weight.dequantize())
    images, others = IMAGES.float(), OTHERS.float()
    with torch.no_grad():
        for one, other in ((model(images), truth(images)),):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        ours, expected = (m.sa_and_pwca(images, others).pwca for m in (model, truth))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@LAYOUTS
@pytest.mark.parametrize("class_tokens_only", [False, True])
def test_hooks_of_every_module_fire(layout: str, class_tokens_only: bool) -> None:
    """Blocks and attentions, norms, the backbone and the ViT itself hand on one tensor each."""
    model = build(layout)
    seen: dict[str, int] = {}

    def hook(name: str) -> Callable:
        def count(module: nn.Module, inputs: tuple, output: object) -> None:
            assert name == "" or isinstance(output, Tensor), name
            seen[name] = seen.get(name, 0) + 1

        return count

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    model(IMAGES, OTHERS, class_tokens_only=class_tokens_only)
    never = [
        name
        for name, module in model.named_modules()
        if name not in seen
        and not isinstance(module, nn.ModuleList)
        and not name.endswith(("attn_drop", "blocks", "fc_norm", "head_drop", "head", "backbone.model.norm"))
    ]
    assert not never, never
    assert {"backbone", "backbone.model"} <= set(seen)


@LAYOUTS
def test_a_replaced_forward_of_a_block_takes_effect(layout: str) -> None:
    model = build(layout).eval()
    before = model(IMAGES)["sa_logits"]
    block = model._sa_blocks[0]
    forward = block.forward
    block.forward = lambda x, *args, **kwargs: 2 * forward(x, *args, **kwargs)
    assert not torch.allclose(model(IMAGES)["sa_logits"], before)


@LAYOUTS
def test_grad_cam_on_a_block(layout: str) -> None:
    """Activations and their gradients of a block's output, as CAM tools take them."""
    model = build(layout).eval()
    kept: list[Tensor] = []
    model._sa_blocks[-1].norm1.register_forward_hook(lambda m, i, o: kept.append(i[0]))
    model._sa_blocks[0].register_forward_hook(lambda m, i, o: kept.append(o))
    model._sa_blocks[0].register_full_backward_hook(lambda m, gi, go: kept.append(go[0]))
    model(IMAGES.clone().requires_grad_())["sa_logits"][:, 1].sum().backward()
    output, _, gradient = kept
    cam = (output * gradient).sum(-1)[:, 1:]
    assert cam.shape == (3, 4) and cam.abs().max() > 0


@LAYOUTS
@pytest.mark.parametrize("class_tokens_only", [False, True])
def test_checkpointing_from_inside_and_outside(layout: str, class_tokens_only: bool) -> None:
    """torch's wrapper and `set_grad_checkpointing`: the same gradients, fewer tensors kept, nothing twice."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def step(model: DualAttentionModel) -> tuple[int, list[Tensor]]:
        kept = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = model(IMAGES, OTHERS, class_tokens_only=class_tokens_only)
        sum(outputs[f"{b}_logits"].square().sum() for b in BRANCHES).backward()
        return kept, [p.grad for p in model.parameters()]

    plain, inside, outside = (build(layout) for _ in range(3))
    inside.set_grad_checkpointing()
    blocks = outside.backbone.model.blocks if layout == "paper" else outside.sa_blocks
    for i, block in enumerate(blocks):
        blocks[i] = checkpoint_wrapper(block)
    most, expected = step(plain)
    for model in (inside, outside):
        kept, gradients = step(model)
        assert kept < 0.7 * most
        for ours, truth in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, truth)


@LAYOUTS
def test_offloading_one_module_at_a_time(layout: str) -> None:
    from accelerate import cpu_offload

    model = small_model(layout=layout).eval()
    images = IMAGES.float()
    with torch.no_grad():
        expected = model(images)
        offloaded = cpu_offload(copy.deepcopy(model), torch.device("cpu"))
        assert offloaded.backbone.model.cls_token.is_meta
        torch.testing.assert_close(offloaded(images), expected)


@LAYOUTS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_blocks_compile_one_by_one(layout: str) -> None:
    torch.compiler.reset()
    plain, model = build(layout), build(layout)
    for block in model._sa_blocks:
        block.compile(backend="eager", fullgraph=True)
    equal(model, plain, "partner_index")
