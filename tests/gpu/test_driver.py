"""What needs the driver of a GPU: streams, graphs, compilation, assertions on the device, limits."""

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from dca_triton import ops
from dca_triton.ops import Attention, triton_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.driver,
    pytest.mark.filterwarnings("ignore:no measured launch configurations"),
]


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """A packed projection (4, 65, 3, 2, 64) and partners of its images."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(4, 65, 3, 2, 64, generator=generator).half().cuda()
    return qkv, torch.randint(-1, 4, (4,), generator=generator).cuda()


def step(qkv: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """The three operations as a model chains them, and the gradient through two of them."""
    q, k, v = qkv.unbind(2)
    out, lse = ops.pair_attention(q, k, v, partner_index=ops.pair_up(index, 4), backend="triton")
    row = ops.rollout_row([q, q], [k, k], [lse, lse], backend="triton")
    rows = row.topk(9).indices
    local = ops.local_attention(q, k, v, rows, backend="triton")
    return out, lse, row, local


def with_gradient(function: Callable[..., tuple[Tensor, ...]], qkv: Tensor, index: Tensor) -> list[Tensor]:
    qkv = qkv.detach().requires_grad_()
    out, lse, row, local = function(qkv, index)
    (gradient,) = torch.autograd.grad(out.square().sum() + local.square().sum(), qkv)
    return [x.detach() for x in (out, lse, row, local, gradient)]


def all_equal(results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_never_waits() -> None:
    given = inputs(0)
    with_gradient(step, *given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradient(step, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_step_replays_on_other_values() -> None:
    """A CUDA graph sees new images and new partners alike."""
    qkv, index = inputs(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradient(step, qkv, index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = with_gradient(step, qkv, index)
    for seed in (1, 2):
        for static, new in zip((qkv, index), inputs(seed), strict=True):
            static.copy_(new)
        graph.replay()
        assert all_equal(results, with_gradient(step, *inputs(seed)))


def test_another_stream() -> None:
    expected = with_gradient(step, *inputs(0))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results = with_gradient(step, *inputs(0))
    torch.cuda.current_stream().wait_stream(side)
    assert all_equal(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_current() -> None:
    expected = with_gradient(step, *inputs(0))
    results = with_gradient(step, *(x.to("cuda:1") for x in inputs(0)))
    assert torch.cuda.current_device() == 0
    assert all_equal([x.to("cuda:0") for x in results], expected)


@pytest.mark.filterwarnings("default")  # the compiler warns a lot
def test_compiled_without_graph_breaks() -> None:
    torch.compiler.reset()
    compiled = with_gradient(torch.compile(step, fullgraph=True), *inputs(0))
    for result, expected in zip(compiled, with_gradient(step, *inputs(0)), strict=True):
        torch.testing.assert_close(result, expected)


def test_an_index_out_of_range_stops_the_device() -> None:
    """In a process of its own, because a failed assertion ends a CUDA context."""
    code = (
        "import torch; from dca_triton import pair_attention\n"
        "q = torch.randn(2, 3, 1, 16, device='cuda')\n"
        "pair_attention(q, q, q, partner_index=torch.tensor([0, 2], device='cuda'))\n"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert torch.version.hip or "device-side assert" in done.stderr  # ROCm aborts without a message


def test_more_images_and_heads_than_a_grid_is_high() -> None:
    q, k, v = torch.randn(3, 70_000, 2, 2, 16, device="cuda", dtype=torch.float16).unbind(0)
    out, lse = triton_backend.pair_attention(Attention(q, k, v, scale=0.25))
    row = triton_backend.rollout_row([q, q], [k, k], [lse, lse], 0.25, None)
    few = [x[-3:] for x in (q, k, v)]
    last, last_lse = triton_backend.pair_attention(Attention(*few, scale=0.25))
    assert all_equal((out[-3:], lse[-3:]), (last, last_lse))
    last_row = triton_backend.rollout_row([few[0]] * 2, [few[1]] * 2, [last_lse] * 2, 0.25, None)
    assert torch.equal(row[-3:], last_row)


def test_results_past_32_bits() -> None:
    """The last image of a batch whose tensors hold more than 2^31 elements each."""
    B, N, H, D = 2**31 // (197 * 12 * 64) + 2, 197, 12, 64
    if torch.cuda.get_device_properties("cuda").total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    q = torch.randn(B, N, H, D, device="cuda", dtype=torch.float16, requires_grad=True)
    partner = torch.arange(B, device="cuda").flip(0)
    out, lse = triton_backend.pair_attention(Attention(q, q, q, pairs=partner, scale=D**-0.5))
    (gradient,) = torch.autograd.grad(out, q, torch.ones_like(out))
    ends = q.detach()[[0, -1]].requires_grad_()
    swap = torch.tensor([1, 0], device="cuda")
    few, few_lse = triton_backend.pair_attention(Attention(ends, ends, ends, pairs=swap, scale=D**-0.5))
    (few_gradient,) = torch.autograd.grad(few, ends, torch.ones_like(few))
    assert torch.equal(out[[0, -1]], few)
    assert torch.equal(lse[[0, -1]], few_lse)
    assert torch.equal(gradient[[0, -1]], few_gradient)
