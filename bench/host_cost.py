"""The host's cost of a call of the Triton backend: `python -m bench.host_cost [rounds]`.

The kernels are replaced by functions that do nothing, and the tensors are on a CPU, so no GPU is needed.
What is left is the work of the library and of PyTorch: checks, the choice of the backend and of tiles,
allocations, autograd. Triton's own launcher is not part of it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
import torch.nn.functional as F
import triton

from dca_triton import local_attention, pair_attention
from dca_triton.ops import pair_up, triton_launch

B, N, H, D = 2, 64, 2, 64
CALLS = 50  # per round


class Nothing:
    """A kernel that is launched and does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: None


def calls() -> dict[str, Callable[[], object]]:
    """What is timed: calls forward, and forward and backward."""
    q, k, v, incoming = (torch.randn(B, N, H, D) for _ in range(4))
    qg, kg, vg = (x.clone().requires_grad_() for x in (q, k, v))
    index = torch.tensor([1, 0])
    pairs = pair_up(index, B)

    def with_gradient(out: torch.Tensor) -> object:
        return torch.autograd.grad(out, (qg, kg, vg), incoming)

    return {
        "pair_attention of pair_up": lambda: pair_attention(q, k, v, partner_index=pairs, backend="triton"),
        "pair_attention by index": lambda: pair_attention(q, k, v, partner_index=index, backend="triton"),
        "local_attention": lambda: local_attention(q, k, v, backend="triton"),
        "pair_attention, backward too": lambda: with_gradient(
            pair_attention(qg, kg, vg, partner_index=pairs, backend="triton")[0]
        ),
        "local_attention, backward too": lambda: with_gradient(local_attention(qg, kg, vg, backend="triton")),
        "F.scaled_dot_product_attention of one token": lambda: F.scaled_dot_product_attention(
            q[:1, :1], k[:1, :1], v[:1, :1]
        ),
    }


def microseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS * 1e6


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        for kernel in ("attention_forward", "attention_dq", "attention_dkdv"):
            stack.enter_context(mock.patch.object(triton_launch, kernel, Nothing()))
        stack.enter_context(triton.knobs.runtime.scope())
        triton.knobs.runtime.interpret = True  # tensors on a CPU are refused otherwise
        timed = calls()
        found = [{name: microseconds(call) for name, call in timed.items()} for _ in range(rounds)]
    for name in timed:
        times = [round_[name] for round_ in found[1:]]
        print(f"{name:44} {statistics.median(times):6.0f} us, at least {min(times):.0f} us")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
