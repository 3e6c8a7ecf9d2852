"""Which of PyTorch's kernels compute attention and its log-sum-exp, on a CPU and on a pretended GPU."""

from typing import Any

import pytest
import torch
from called_operators import CalledOperators
from ops_cases import packed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from dca_triton import ops
from dca_triton.ops import fused

FLASH = "aten._scaled_dot_product_flash_attention.default"
EFFICIENT = "aten._scaled_dot_product_efficient_attention.default"


def test_packed_projections_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual layouts cost no copy; only other layouts are copied."""
    copies: list[tuple[int, ...]] = []
    contiguous = Tensor.contiguous

    def counted(x: Tensor, *args: object, **options: object) -> Tensor:
        if not x.is_contiguous():
            copies.append(x.stride())
        return contiguous(x, *args, **options)

    monkeypatch.setattr(Tensor, "contiguous", counted)
    q, k, v = packed(2, 9, 3).unbind(2)
    for queries in (q, q[:, :1], q[:, ::2], q[:1], k.clone(memory_format=torch.contiguous_format)):
        fused.attention_with_lse(queries, k[: len(queries)], v[: len(queries)], 0.25)
    assert {len(strides) for strides in copies} <= {3}  # of the log-sum-exp only
    heads_first = q.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    fused.attention_with_lse(heads_first, k, v, 0.25)
    assert heads_first.stride() in copies


def test_a_gpu_is_given_few_chunks() -> None:
    """DeiT-B with a batch of 64: a launch for each chunk, not for each row."""
    scores_per_row = 64 * 12 * 197
    assert len(fused.row_chunks(197, scores_per_row, fused.CHUNK)) == 197
    assert len(fused.row_chunks(197, scores_per_row, fused.GPU_CHUNK)) == 1


class Operators(CalledOperators):
    """Records each operator with the number of elements of its largest output."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, int] = {}

    def look(self, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        sizes = [x.numel() for x in outputs if isinstance(x, Tensor)]
        self.largest[name] = max([self.largest.get(name, 0), *sizes])


@pytest.mark.parametrize("unpaired", [0, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "kernel"),
    [
        (torch.bfloat16, 64, (9, 0), FLASH),
        (torch.float16, 72, (8, 0), FLASH),
        (torch.float32, 64, (9, 0), EFFICIENT),
        (torch.float16, 64, (7, 5), EFFICIENT),
    ],
    ids=str,
)
def test_a_gpu_takes_the_fused_kernel_once_and_nothing_of_size_n_by_n(
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int],
    kernel: str,
    unpaired: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No mask, no second pass for the log-sum-exp, and no value is read, which would be a host sync."""
    B, N, H = 4, 1000, 3
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode(), Operators() as operators:
        q, k, v = (torch.empty(B, N, H, head_dim, device="cuda", dtype=dtype) for _ in range(3))
        for x in (q, k, v):
            x.requires_grad_()
        pairs = ops.pair_up(torch.empty(B, dtype=torch.int64, device="cuda"), B, unpaired)
        out, lse = ops.pair_attention(q, k, v, partner_index=pairs, backend="torch")
    assert (out.shape, lse.shape) == ((B, N, H, head_dim), (B, H, N))
    assert lse.dtype == torch.float32 and out.requires_grad and not lse.requires_grad
    assert kernel in operators.largest
    assert not any("local_scalar" in name or "logsumexp" in name for name in operators.largest)
    assert max(operators.largest.values()) <= 2 * B * N * H * head_dim < B * H * N * N


def test_without_a_fused_kernel_the_log_sum_exp_takes_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64, a head dimension that is not a multiple of 8, and the user's own choice."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for dtype, head_dim, chosen in (
        (torch.float64, 64, SDPBackend.FLASH_ATTENTION),
        (torch.bfloat16, 76, SDPBackend.FLASH_ATTENTION),
        (torch.bfloat16, 64, SDPBackend.MATH),
    ):
        with sdpa_kernel(chosen):
            q = torch.empty(2, 9, 3, head_dim, device="meta", dtype=dtype)
            with FakeTensorMode():
                fake = torch.empty(2, 9, 3, head_dim, device="cuda", dtype=dtype)
                assert fused._kernel_of(fake, None, 0.0) is None
                assert fused._kernel_of(fake, fake, 0.0) is None
            assert fused._kernel_of(q, None, 0.0) is None
