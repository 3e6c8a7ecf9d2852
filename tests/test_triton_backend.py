"""The Triton backend as PyTorch's compiler and a caller see it; its numbers are in tests/interpreted."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton")

from dca_triton import tuning
from dca_triton.ops import triton_backend, triton_launch
from dca_triton.static.capture import capture

B, N, H, D, R = 4, 197, 3, 64, 20
CONFIG = tuning.Config(64, 64, 4, 2)


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
            lambda q, k, v, p: triton_backend.pair_attention(q, k, v, None, None, p, 0.1), q, k, v, partner
        )
        local = targets(lambda q, k, v, i: triton_backend.local_attention(q, k, v, i, 0.1), q, k, v, index)
    assert torch.ops.dca_triton.attention.default in pair
    assert torch.ops.dca_triton.attention.default in local


def test_backward_is_traced_as_one_operator() -> None:
    """On fake CPU tensors: PyTorch's autograd engine asks a driver for the streams of fake CUDA ones."""

    def gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        out, _ = triton_backend.pair_attention(q, k, v, None, None, None, 0.1)
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
        out, lse = triton_backend.pair_attention(q[:, :rows], k, v, pk, pv, partner, 0.1)
        gradients = torch.ops.dca_triton.attention_backward(
            "pair_attention", out, q[:, :rows], k, v, pk, pv, partner, None, out, lse, 0.1
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
        partner = None if partners == "none" else cuda(B, dtype=torch.long)
        pk, pv = cuda(5, 40, 2, H, D).unbind(2) if partners == "others" else (None, None)
        out, lse = triton_launch.forward("pair_attention", q, k, v, pk, pv, partner, None, 0.1)
        triton_launch.backward("pair_attention", out, q, k, v, pk, pv, partner, None, out, lse, 0.1)

    forced = {("pair_attention", direction): CONFIG for direction in tuning.DIRECTIONS["pair_attention"]}
    with tuning.forced(forced):
        launches = capture(step, "sm_90")
    kernels = ["attention_forward", "attention_dq", "attention_dkdv"]
    assert [x.name for x in launches] == kernels + ["attention_dkdv"] * (partners == "others")


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_readers_of_an_image_in_order(partners: list[int], own: bool, dtype: torch.dtype) -> None:
    rows = len(partners)
    images = max(4, rows)
    image = torch.tensor(partners, dtype=dtype)
    image = torch.cat([torch.arange(rows), image]) if own else image
    reader, first = triton_launch._readers(image, rows, images)
    for j in range(images):
        expected = [j] * (own and j < rows) + [i for i, partner in enumerate(partners) if partner == j]
        assert reader[first[j] : first[j + 1]].tolist() == expected


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
    monkeypatch.setattr(torch.version, "hip", None)
    with FakeTensorMode():
        assert "7.5" in triton_backend.reasons_against(cuda(1, 2, 3, 64))[0]


@pytest.mark.parametrize("setting", ["ieee", "tf32"])
def test_float32_follows_the_matmul_setting(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting == "tf32" else "highest")
    try:
        assert triton_launch._precision(torch.empty(1)) == setting
        assert triton_launch._precision(torch.empty(1, dtype=torch.float16)) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
