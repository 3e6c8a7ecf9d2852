"""Compared paths agree on small shapes, a planted fault is refused, and titles are unique."""

import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import fakes
import pytest
import torch
import torch.nn.functional as F

from bench import gate, model_paths, op_paths, peers, report
from bench.formulations import Maps
from bench.measure import Disagreement, check_agreement, peak_bytes
from bench.paper_maps import PaperSAMaps
from bench.registry import Benchmark, benchmarks
from bench.shapes import ModelShape, OpShape
from dca_triton import DualAttentionModel

MODEL = ModelShape("test_vit", size=48, B=3)  # 6 blocks of width 64
OP = OpShape(B=3, N=21, H=2, D=16, L=3)
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    small = partial(DualAttentionModel, num_sa_blocks=6, num_pwca_blocks=6, num_heads=2)
    monkeypatch.setattr(model_paths, "DualAttentionModel", small)


def without_compiler(paths):
    return {name: path for name, path in paths.items() if "compiled" not in name}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True])
def test_steps_agree(dtype, training):
    check_agreement(without_compiler(model_paths.paths(MODEL, dtype, fakes.CPU, training)), dtype)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's own tracing asks for it
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("eager maps, compiled", 4),  # the backbone's block, SA, PWCA, GLCA
        ("best own way, compiled", 6),  # the same, and the class token's row of the last SA and PWCA block
    ],
)
def test_a_compiled_path_has_one_graph_for_all_blocks(name, count, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    paths = model_paths.paths(MODEL, "fp32", fakes.CPU, True)
    check_agreement({path: paths[path] for path in ("eager maps", name)}, "fp32")
    assert len(graphs) == count


@pytest.mark.parametrize("training", [False, True])
def test_sa_alone_has_an_oracle_of_its_own(training):
    """timm's model has the weights of the paper layout's SA branch; another head is refused."""
    sa_alone = model_paths.paths(MODEL, "fp32", fakes.CPU, training)["SA alone"]
    found = sa_alone.run()
    gradients = {"gradient of vit.head.weight", "gradient of vit.blocks.5.attn.qkv.weight"}
    assert found.keys() >= {"sa_logits", *(gradients if training else ())}
    assert not any("glca" in name or "pwca" in name for name in found)
    right = PaperSAMaps.forward

    def planted(self, images, partner_index=None):
        return {"sa_logits": right(self, images)["sa_logits"] + self.model.glca_head.weight[:, 0]}

    with patch.object(PaperSAMaps, "forward", planted), pytest.raises(Disagreement, match="sa_logits"):
        check_agreement({"first": sa_alone, "SA alone": sa_alone}, "fp32")


def test_a_wrong_partner_is_refused(monkeypatch):
    """In bf16, whose tolerance is the largest, by the logits of a model that is benchmarked."""
    monkeypatch.setattr(model_paths, "DualAttentionModel", DualAttentionModel)
    paths = model_paths.paths(MODEL._replace(backbone="deit_tiny_patch16_224"), "bf16", fakes.CPU, True)
    right = Maps.pair_block

    def planted(self, block, x, pair):
        return right(self, block, x, pair.roll(1, 0))

    with patch.object(Maps, "pair_block", planted), pytest.raises(Disagreement, match="pwca_logits differs"):
        check_agreement({name: paths[name] for name in ("eager maps", "library")}, "bf16")


def test_a_step_with_a_peer_s_attention_has_it_in_every_block(monkeypatch):
    calls = []

    def right(q, k, v):
        calls.append(k.shape[2])
        return F.scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(
        model_paths, "peers", lambda _: {"right": right, "wrong": lambda q, k, v: right(q, k, v) + 1}
    )
    paths = model_paths.paths(MODEL, "fp32", fakes.CPU, True)
    names = ["best own way", "best own way, right", "best own way, wrong"]
    left_out = check_agreement({name: paths[name] for name in names}, "fp32")
    assert list(left_out) == ["best own way, wrong"]
    layers, tokens = 6 + 6 + 1, 10  # of the backbone, SA and GLCA; PWCA has the keys of two images
    assert calls.count(tokens) == 2 * layers and calls.count(2 * tokens) == 2 * 6


def test_peers_are_those_that_are_installed(monkeypatch):
    def attention(q, k, v):
        assert q.shape == (2, 5, 3, 4)  # (B, M, H, D), as flash-attn has it
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), "lse"

    q, k, v = torch.randn(2, 3, 5, 4), *torch.randn(2, 2, 3, 7, 4)
    assert peers.peers(fakes.CPU) == {}
    names = ["cuDNN SDPA", "FlashAttention 2 SDPA", "FlexAttention"]
    assert list(peers.peers(GPU)) == names
    cute = SimpleNamespace(flash_attn_func=attention)
    monkeypatch.setattr(peers, "can_import", lambda name: name == "flash_attn.cute")
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    found = peers.peers(GPU)
    assert list(found) == [*names, "FlexAttention FLASH", "flash-attn-4"]
    torch.testing.assert_close(found["flash-attn-4"](q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("training", [False, True])
def test_pair_attentions_agree(training):
    paths = op_paths.pair_paths(OP, "fp32", fakes.CPU, training)
    check_agreement(paths, "fp32")
    assert ("two SDPA merged" in paths) == (not training)


@pytest.mark.parametrize("build", [op_paths.rollout_paths, op_paths.local_paths])
def test_operations_agree(build):
    check_agreement(build(OP, "fp32", fakes.CPU), "fp32")


@pytest.mark.parametrize(
    "build",
    [
        partial(op_paths.pair_paths, training=False),
        partial(op_paths.pair_paths, training=True),
        op_paths.rollout_paths,
        op_paths.local_paths,
    ],
)
def test_the_library_s_memory_grows_as_its_tokens(build):
    """With the strides of a packed projection and of a fused kernel's log-sum-exp, as in the model."""
    lengths = [785, 1568]
    runs = [build(OP._replace(N=N), dtype="fp32", device=fakes.CPU) for N in lengths]
    library, eager = (
        report.exponent(lengths, [peak_bytes(paths[name].run, fakes.CPU) for paths in runs])
        for name in ("library", next(iter(runs[0])))
    )
    assert library <= gate.GROWTH < 1.3 < eager


@pytest.mark.parametrize("device", [fakes.CPU, GPU], ids=str)
def test_benchmarks_are_told_apart(device):
    found = list(benchmarks(device))
    assert len({benchmark.title for benchmark in found}) == len(found)
    assert {b.shape.N for b in found if isinstance(b.shape, OpShape)} >= {128, 3136}


def test_a_title_holds_shape_and_dtype():
    assert (
        Benchmark("rollout_row", OP, "fp32", dict, seconds=1).title
        == "rollout_row B=3 N=21 H=2 D=16 L=3 fp32"
    )


def test_least_arithmetic_of_attention():
    """Counted by hand for one operation: 4 B H N 2N D for the scores and values of two images."""
    (pair, *_) = (b for b in benchmarks(fakes.CPU) if b.name == "pair_attention" and b.shape.N == 128)
    B, N, H, D, _ = pair.shape
    assert pair.flops == 4 * B * H * N * (2 * N) * D
    assert pair.moved == 4 * (4 * B * N * H * D + B * N * H)


@pytest.mark.parametrize("supported", [True, False])
def test_steps_in_bf16_are_left_out_on_a_cpu_without_its_instructions(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    on_cpu, on_gpu = (
        {b.dtype for b in benchmarks(device) if isinstance(b.shape, ModelShape)}
        for device in (fakes.CPU, GPU)
    )
    assert on_cpu == ({"fp32", "bf16"} if supported else {"fp32"})
    assert on_gpu == {"fp32", "bf16"}
