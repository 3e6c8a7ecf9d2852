"""The Triton backend as PyTorch's compiler and a caller see it; its numbers are in tests/interpreted."""

import sys
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton")

from dca_triton import ops
from dca_triton.ops import Attention, launch_table, triton_backend, triton_launch
from dca_triton.ops.pairing import invert_pairs
from dca_triton.tuning.meter.capture import capture

B, N, H, D, R = 4, 197, 3, 64, 20
CONFIG = launch_table.Config(64, 64, 4, 2)


def cuda(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def targets(function: Callable[..., object], *inputs: Tensor) -> list[object]:
    graph = make_fx(function)(*inputs).graph
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_forward_is_traced_as_one_operator() -> None:
    with FakeTensorMode():
        qkv, partner, index = cuda(B, N, 3, H, D), cuda(B, dtype=torch.long), cuda(B, R, dtype=torch.long)
        q, k, v = qkv.unbind(2)
        pair = targets(
            lambda q, k, v, p: triton_backend.pair_attention(Attention(q, k, v, pairs=p, scale=0.1)),
            q,
            k,
            v,
            partner,
        )
        local = targets(
            lambda q, k, v, i: triton_backend.local_attention(Attention(q, k, v, rows=i, scale=0.1)),
            q,
            k,
            v,
            index,
        )
    assert torch.ops.dca_triton.attention.default in pair
    assert torch.ops.dca_triton.attention.default in local


def test_backward_is_traced_as_one_operator() -> None:
    """On fake CPU tensors: for fake CUDA tensors the autograd engine would query a driver for streams."""

    def gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        out, _ = triton_backend.pair_attention(Attention(q, k, v, scale=0.1))
        return torch.autograd.grad(out.sum(), [q, k, v])

    with FakeTensorMode():
        inputs = [torch.empty(B, N, H, D, requires_grad=True) for _ in range(3)]
        traced = targets(gradients, *inputs)
    assert traced.count(torch.ops.dca_triton.attention.default) == 1
    assert traced.count(torch.ops.dca_triton.attention_backward.default) == 1


@pytest.mark.parametrize("others", [None, (5, 40)])
@pytest.mark.parametrize("rows", [1, N])
def test_shapes_on_fake_cuda_tensors(others: tuple[int, int] | None, rows: int) -> None:
    with FakeTensorMode():
        qkv, partner = cuda(B, N, 3, H, D), cuda(B, dtype=torch.long)
        q, k, v = qkv.unbind(2)
        pk, pv = (None, None) if others is None else cuda(*others, 2, H, D).unbind(2)
        out, lse = triton_backend.pair_attention(Attention(q[:, :rows], k, v, pk, pv, partner, scale=0.1))
        gradients = torch.ops.dca_triton.attention_backward(
            "pair_attention",
            out,
            q[:, :rows],
            k,
            v,
            pk,
            pv,
            *invert_pairs(partner, 5)[:3],
            None,
            out,
            lse,
            0.1,
        )
    assert out.shape == (B, rows, H, D)
    assert out.is_contiguous()
    assert lse.shape == (B, H, rows)
    assert (lse.dtype, lse.device.type) == (torch.float32, "cuda")
    inputs = [q[:, :rows], k, v] if pk is None else [q[:, :rows], k, v, pk, pv]
    assert [x.shape for x in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("partners", ["none", "batch", "others"])
def test_launches_of_one_step(partners: str) -> None:
    """One kernel forward; backward dQ first, then dK and dV of the batch, then those of other partners."""

    def step() -> None:
        q, k, v = cuda(B, N, 3, H, D).unbind(2)
        pairs = None if partners == "none" else invert_pairs(cuda(B, dtype=torch.long), B)
        pk, pv = cuda(5, 40, 2, H, D).unbind(2) if partners == "others" else (None, None)
        a = Attention(q, k, v, pk, pv, pairs, scale=0.1)
        out, lse = triton_launch.forward("pair_attention", a)
        triton_launch.backward("pair_attention", a, out, out, lse)

    forced = {
        ("pair_attention", direction): CONFIG for direction in launch_table.DIRECTIONS["pair_attention"]
    }
    with launch_table.forced(forced):
        launches = capture(step, "sm_90")
    kernels = ["attention_forward", "attention_dq", "attention_dkdv"]
    assert [x.name for x in launches] == kernels + ["attention_dkdv"] * (partners == "others")


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.sampled_from([torch.int32, torch.int64]))
def test_readers_of_an_image_in_order(index: list[int], dtype: torch.dtype) -> None:
    pairs = ops.pair_up(torch.tensor(index, dtype=dtype), 4)
    assert pairs.partner.tolist() == index
    for j in range(4):
        readers = pairs.readers[pairs.starts[j] : pairs.starts[j + 1]].tolist()
        assert readers == [i for i, image in enumerate(index) if image == j]
    even = torch.arange(0, len(index), 2)
    for some, expected in zip(pairs.of(even)[:3], ops.pair_up(pairs.partner[even], 4)[:3], strict=True):
        assert torch.equal(some, expected)


def test_partners_outlive_a_change_of_their_index() -> None:
    index = torch.tensor([1, 0, -1])
    pairs = ops.pair_up(index, 3)
    index.zero_()
    assert pairs.partner.tolist() == [1, 0, -1]


def test_partners_name_every_fault() -> None:
    for index, images, reasons in [
        (torch.tensor([0, 4]), 4, ["index must hold values in [-1, 4), got values from 0 to 4"]),
        (
            torch.zeros(1, 2),
            0,
            [
                "index must have shape (B,), got (1, 2)",
                "torch.float32",
                "images must be an integer >= 1, got 0",
            ],
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            ops.pair_up(index, images)
        assert [reason for reason in reasons if reason not in str(caught.value)] == []


def test_the_compiler_takes_partners_inverted_once() -> None:
    """As one graph on fake CUDA tensors: what two calls share is checked and inverted once."""
    graphs = []

    def step(qkv: Tensor, index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = qkv.unbind(2)
        pairs = ops.pair_up(index, B)
        out, lse = ops.pair_attention(q, k, v, partner_index=pairs)
        out, lse = ops.pair_attention(out, k, v, partner_index=pairs)
        row = ops.rollout_row([q], [k], [lse])
        return row, ops.local_attention(out, k, v, rows)

    def keep(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    # Querying the driver while a compiler traces would break the graph.
    capability = torch._dynamo.disable(lambda device: (9, 0))
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.cuda, "get_device_capability", capability),
        mock.patch.object(launch_table, "gpu_of", lambda _: launch_table.Gpu("Fake", "sm_90")),
    ):
        inputs = cuda(B, N, 3, H, D), cuda(B, dtype=torch.long), cuda(B, R, dtype=torch.long)
        torch.compiler.reset()
        row, local = torch.compile(step, fullgraph=True, backend=keep)(*inputs)
    assert (row.shape, local.shape) == ((B, N), (B, R, H, D))
    (graph,) = graphs
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.dca_triton.attention.default) == 3
    assert called.count(torch.ops.dca_triton.rollout_row.default) == 1
    assert called.count(torch.sort) == 1
    assert called.count(torch._assert_async) == 2


def test_every_fault_and_every_reason_in_one_error() -> None:
    q, k, v = torch.empty(3, 2, 5, 1, 40, dtype=torch.float64)
    with pytest.raises(ValueError) as caught:
        ops.pair_attention(q, k, v[:, :4], None, None, torch.tensor([0, 7]), -1.0, backend="triton")
    for reason in (
        "v must have k's shape (2, 5, 1, 40), got (2, 4, 1, 40)",
        "from 0 to 7",
        "got -1.0",
        "on the CPU",
        "float64",
        "got 40",
    ):
        assert reason in str(caught.value)


@pytest.mark.parametrize("module", ["triton_backend", "triton_launch"])
def test_a_broken_library_is_not_a_missing_triton(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """backend="auto" must not silently run PyTorch if a file of this library cannot be imported."""
    broken = f"dca_triton.ops.{module}"
    for importer in ("triton_backend", "operators"):
        monkeypatch.delitem(sys.modules, f"dca_triton.ops.{importer}")
        monkeypatch.delattr(ops, importer)
    monkeypatch.setitem(sys.modules, broken, None)
    monkeypatch.delattr(ops, module, raising=False)
    with pytest.raises(ImportError) as caught:
        ops.reasons_against_triton(torch.empty(1, 2, 3, 64))
    assert caught.value.name == broken


def test_partners_of_other_images_than_the_keys_are_refused() -> None:
    q, k, v = torch.randn(3, 2, 5, 1, 16)
    with pytest.raises(ValueError, match="partner_index must be made for B' = 2 images, got one for 3"):
        ops.pair_attention(q, k, v, partner_index=ops.pair_up(torch.tensor([1, 0]), 3))
    index = torch.tensor([1, -1])
    inverse, plain = (ops.pair_attention(q, k, v, partner_index=p) for p in (ops.pair_up(index, 2), index))
    torch.testing.assert_close(inverse, plain)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_start_row_of_rollout_is_nowhere_negative(bad: float) -> None:
    q, lse, row = torch.randn(1, 3, 1, 16), torch.zeros(1, 1, 3), torch.tensor([[1.0, bad, 0.0]])
    with pytest.raises(ValueError, match="row must hold finite values >= 0"):
        ops.rollout_row([q], [q], [lse], row=row)


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("sm_80", 8),
        ("sm_90", 8),
        ("sm_100", 16),
        ("sm_103", 16),
        ("sm_120", 8),
        ("gfx942", 32),
        ("gfx1100", 16),
    ],
)
def test_width_of_a_matrix_instruction(arch: str, width: int) -> None:
    assert triton_launch.least_width(arch) == width


def test_rows_too_far_apart_are_copied() -> None:
    near = torch.empty(1, 2, 1, 16)
    assert triton_launch.rows(near) is near
    assert triton_launch.rows(near.transpose(1, 3)).stride(-1) == 1
    with FakeTensorMode():
        far = torch.empty((1 << 24) + 17).as_strided((1, 2, 1, 16), (16, (1 << 24) + 1, 16, 1))
        assert triton_launch.rows(far).stride(1) == 16


def test_heads_that_are_not_aligned_are_copied() -> None:
    """Where 16 does not divide D, the kernels rely on strides that the largest power of 2 in D divides."""
    for D, stride, taken in [(72, 72, True), (72, 80, True), (72, 76, False), (76, 80, True), (16, 19, True)]:
        x = torch.empty(3 * 2 * stride + D).as_strided((1, 3, 2, D), (0, 2 * stride, stride, 1))
        assert (triton_launch.rows(x) is x) is taken
        assert triton_launch.rows(x).stride(2) == (stride if taken else D)


def test_every_reason_at_once() -> None:
    reasons = triton_backend.reasons_against(torch.empty(1, 2, 3, 40, dtype=torch.float64))
    text = "; ".join(reasons)
    assert len(reasons) == 3
    assert "CPU" in text
    assert "float64" in text
    assert "40" in text


def test_no_reason_against_what_the_interpreter_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend.triton.knobs.runtime, "interpret", True)
    assert triton_backend.reasons_against(torch.empty(1, 2, 3, 48)) == []


def test_an_old_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(launch_table, "gpu_of", lambda _: launch_table.Gpu("Old", "sm_75"))
    monkeypatch.setattr(torch.version, "hip", None)
    with FakeTensorMode():
        assert "7.5" in triton_backend.reasons_against(cuda(1, 2, 3, 64))[0]


def test_pytorch_takes_the_heads_that_triton_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, which fake tensors stand for, nothing else speaks against them."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(launch_table, "gpu_of", lambda _: launch_table.Gpu("Fake", "sm_90"))
    monkeypatch.setattr(torch.version, "hip", None)
    with FakeTensorMode():
        for width in launch_table.HEAD_DIMS:
            assert triton_backend.reasons_against(cuda(1, 5, 2, width)) == []
        q = cuda(1, 5, 2, 24)
        for call in (
            lambda backend: ops.pair_attention(q, q, q, backend=backend)[0],
            lambda backend: ops.local_attention(q, q, q, backend=backend),
        ):
            assert call("auto").shape == q.shape
            with pytest.raises(
                RuntimeError, match=r"^backend='triton' cannot run here: head dimension D must be"
            ):
                call("triton")


def test_heads_that_spill_on_a_gpu_are_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for arch, served in (("gfx942", True), ("gfx1100", False)):
        monkeypatch.setattr(launch_table, "gpu_of", lambda _, arch=arch: launch_table.Gpu("Fake", arch))
        with FakeTensorMode():
            assert triton_backend.reasons_against(cuda(1, 5, 2, 80)) == []
            reasons = triton_backend.reasons_against(cuda(1, 5, 2, 72))
            sizes = "16, 32, 48, 64, 80, 96, 104, 112, 128"
            assert reasons == ([] if served else [f"head dimension D must be one of {sizes}, got 72"])


@pytest.mark.parametrize("setting", ["ieee", "tf32"])
def test_float32_follows_the_matmul_setting(setting: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting == "tf32" else "highest")
    try:
        assert triton_launch.precision(torch.float32, "sm_90") == setting
        assert triton_launch.precision(torch.float32, "gfx942") == "ieee"
        assert triton_launch.precision(torch.float16, "sm_90") == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
