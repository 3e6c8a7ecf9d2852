"""Whatever changes a model between two evaluations, its rollout cache returns no old row."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load, save
from small_training import small_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from dca_triton.model import DualAttentionModel

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Call = Callable[[Tensor], dict[str, Tensor]]
Change = Callable[[DualAttentionModel], object]

CHANGES: dict[str, Change] = {}  # what gives other rows
SAME: dict[str, Change] = {}  # what may leave the rows as they are


def change(function: Change) -> Change:
    CHANGES[function.__name__] = function
    return function


def same(function: Change) -> Change:
    SAME[function.__name__] = function
    return function


def qkv(model: DualAttentionModel) -> nn.Linear:
    return model._sa_blocks[0].attn.qkv


def blocks_of(model):
    return model.backbone.model.blocks if model.layout == "paper" else model.sa_blocks


def other_weights(model: DualAttentionModel, seed: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=random) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def train_a_step(optimizer: torch.optim.Optimizer, model: DualAttentionModel) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    optimizer.step()


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    for way in ({"foreach": False}, {"foreach": True}, {"fused": True}):

        def step(model, kind=kind, way=way):
            train_a_step(kind(model.parameters(), lr=0.1, **way), model)

        CHANGES[f"{kind.__name__} {way}"] = step


@change
def load_state_dict(model):
    model.load_state_dict(other_weights(model))


@change
def load_by_assignment(model):
    model.load_state_dict(other_weights(model), assign=True)


@change
def load_safetensors_by_assignment(model):
    model.load_state_dict(load(save(other_weights(model))), assign=True)


@change
def write_through_data(model):
    qkv(model).weight.data.mul_(1.5)


@change
def replace_data(model):
    qkv(model).weight.data = qkv(model).weight.data * 1.5


@change
def copy_without_grad(model):
    with torch.no_grad():
        qkv(model).weight.copy_(qkv(model).weight * 1.5)


@change
def write_through_numpy(model):
    qkv(model).weight.detach().numpy()[:] *= 1.5


@change
def set_storage(model):
    with torch.no_grad():
        qkv(model).weight.set_(qkv(model).weight * 1.5)


@change
def swap_tensors(model):
    torch.utils.swap_tensors(qkv(model).weight, nn.Parameter(qkv(model).weight.detach() * 1.5))


@change
def swap_an_average(model):
    average = torch.optim.swa_utils.AveragedModel(model)
    average.module.load_state_dict(other_weights(model))
    for ours, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
        ours.data, theirs.data = theirs.data, ours.data


@change
def apply_to_every_module(model):
    model.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)


@change
def replace_a_parameter(model):
    qkv(model).weight = nn.Parameter(qkv(model).weight.detach() * 1.5)


@change
def replace_a_module(model):
    model._sa_blocks[0].attn.qkv = nn.Linear(*reversed(qkv(model).weight.shape))


@change
def replace_the_position_embedding(model):
    embedding = model.backbone.model.pos_embed
    model.backbone.model.pos_embed = nn.Parameter(embedding.detach().flip(1) + 0.5)


@change
def replace_the_patch_embedding(model):
    old = model.backbone.model.patch_embed.proj
    model.backbone.model.patch_embed.proj = nn.Conv2d(3, old.out_channels, old.kernel_size, old.stride)


@change
def add_a_lora_adapter(model):
    adapt(model)


@change
def scale_a_lora_adapter(model):
    adapt(model)
    model(IMAGES)
    qkv(model).scale_layer(3.0)


@change
def merge_a_lora_adapter(model):
    adapt(model)
    model(IMAGES)
    qkv(model).merge()


@same
def disable_a_lora_adapter(model):
    adapt(model)
    model(IMAGES)
    qkv(model).enable_adapters(False)


def adapt(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    model.eval()


@change
def add_a_forward_hook(model):
    qkv(model).register_forward_hook(lambda m, x, y: 1.5 * y)


@change
def add_a_hook_before(model):
    model._sa_blocks[0].norm1.register_forward_pre_hook(lambda m, x: (x[0].roll(1, 1),))


@same
def add_and_remove_a_hook(model):
    handle = qkv(model).register_forward_hook(lambda m, x, y: 1.5 * y)
    model(IMAGES)
    handle.remove()


@change
def replace_a_forward_method(model):
    plain = qkv(model).forward
    qkv(model).forward = lambda x: 1.5 * plain(x)


@change
def parametrize_a_weight(model):
    parametrizations.weight_norm(qkv(model))
    qkv(model).parametrizations.weight.original0.data.mul_(1.5)


@change
def prune_a_weight(model):
    prune.l1_unstructured(qkv(model), "weight", 0.5)


@change
def change_a_mask_buffer(model):
    prune.l1_unstructured(qkv(model), "weight", 0.1)
    model(IMAGES)
    qkv(model).weight_mask.zero_()


@change
def change_an_epsilon(model):
    model._sa_blocks[0].norm1.eps = 1.0


@change
def change_an_activation(model):
    model._sa_blocks[0].mlp.act = nn.Tanh()


@change
def skip_an_mlp(model):
    model._sa_blocks[0].mlp = nn.Identity()


@change
def drop_a_block(model):
    del blocks_of(model)[-1]


@same
def change_the_prefix(model):
    model.backbone.num_prefix_tokens = 2


@same
def change_the_share_of_patches(model):
    model.top_k_ratio = 0.9


@same
def train_and_evaluate(model):
    model.train()(IMAGES)
    model.eval()


@same
def one_block_left_in_training(model):
    model._sa_blocks[0].train()


@change
def double(model):
    model.double()
    return lambda x: model(x.double())


@change
def half_precision(model):
    model.bfloat16()
    return lambda x: model(x.bfloat16())


@same
def to_the_meta_device(model):
    shapes = copy.deepcopy(model).to("meta")
    shapes(IMAGES.to("meta"))


@same
def other_threads(model):
    def call(x):
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - min(threads, 2))
        try:
            return model(x)
        finally:
            torch.set_num_threads(threads)

    return call


@same
def another_thread(model):
    def call(x):
        with torch.no_grad(), ThreadPoolExecutor(1) as pool:
            return pool.submit(model, x).result()

    return call


@change
def autocast(model):
    return torch.autocast("cpu", torch.bfloat16)(model)


@same
def inference_mode(model):
    return torch.inference_mode()(model)


@change
def deep_copy(model):
    other = copy.deepcopy(model)
    other.load_state_dict(other_weights(model))
    return other


@change
def pickle_round_trip(model):
    other = pickle.loads(pickle.dumps(model))
    other.load_state_dict(other_weights(model))
    return other


@change
def a_shallow_replica_with_the_same_cache(model):
    replica = copy.deepcopy(model)
    replica.load_state_dict(other_weights(model))
    replica.cache = model.cache
    return replica


@change
def functional_weights(model):
    weights = other_weights(model)
    return lambda x: functional_call(model, weights, (x,))


@same
def default_device(model):
    def call(x):
        with torch.device("meta"):
            return model(x)

    return call


@same
def backend_torch(model):
    model.backend = "torch"


@same
def lower_matmul_precision(model):
    @contextmanager
    def lowered() -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    return lowered()(model)


@same
def precision_of_one_backend(model):
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch has one matmul precision for all backends")

    @contextmanager
    def lowered() -> Iterator[None]:
        before = torch.backends.mkldnn.matmul.fp32_precision
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = before

    return lowered()(model)


@change
def quantize(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(blocks_of(model), quantization.Int8WeightOnlyConfig())


@change
def checkpoints_in_turn(model):
    """Freed addresses come again."""
    for seed in range(4):
        model.load_state_dict(other_weights(model, seed), assign=True)
        check(model, model)


def rows_of(model: DualAttentionModel, call: Call) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The rollout rows that the calls use, and the outputs."""
    rows: list[Tensor] = []
    plain = DualAttentionModel.rollout

    def keep(self, traces, cached=False):
        rows.append(plain(self, traces, cached))
        return rows[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(DualAttentionModel, "rollout", keep)
        outputs = dict(call(IMAGES))
    return rows, outputs


def check(model: DualAttentionModel, call: Call) -> list[Tensor]:
    """Compare with the model that has no cache, bit for bit; return the rows."""
    owner = call if isinstance(call, DualAttentionModel) else model
    rows, outputs = rows_of(owner, call)
    cache, owner.cache = owner.cache, None
    true_rows, truth = rows_of(owner, call)
    owner.cache = cache
    for ours, theirs in zip([*rows, *outputs.values()], [*true_rows, *truth.values()], strict=True):
        assert torch.equal(ours, theirs)
    return rows


PAPER = ("AdamW {'fused': True}", "checkpoints_in_turn", "replace_a_module", "add_a_forward_hook", "autocast")


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "reference") for name in [*CHANGES, *SAME]] + [(name, "paper") for name in PAPER],
)
def test_no_change_finds_an_old_row(name, layout):
    blocks = {"num_sa_blocks": 3, "num_glca_blocks": 2} if layout == "reference" else {"depth": 3}
    model = small_model(layout=layout, **blocks).eval()
    (before,) = check(model, model)
    (again,) = check(model, model)
    assert torch.equal(before, again)
    assert model.get_cache_stats()["cache_hits"] == len(IMAGES)  # the control: without a change they hit

    call = (CHANGES | SAME)[name](model)
    for _ in range(2):
        rows = check(model, call if callable(call) else model)
    if name in CHANGES:
        assert not torch.equal(before, rows[0])
    check(model, model if name not in ("double", "half_precision") else call)


def test_there_are_many_changes():
    assert len(CHANGES) + len(SAME) >= 50
