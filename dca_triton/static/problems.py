"""The launches that the library makes for each operation, on real tensors or on fake ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import tuning
from ..ops import triton_launch, triton_rollout
from ..ops.attention import Attention
from ..ops.partners import Partners, inverted
from .capture import Launch, capture
from .work import KINDS

LOCAL_RATIO = 0.3  # selected rows of local attention, as for re-identification
KERNELS = {
    "forward": "attention_forward",
    "dkdv": "attention_dkdv",
    "dq": "attention_dq",
    "step": "rollout_columns",
}


def problem(
    op: str,
    head_dim: int,
    dtype: torch.dtype,
    n: int,
    device: torch.device,
    *,
    backward: bool = False,
    pairs: bool = True,
    batch: int = 64,
    heads: int = 12,
) -> Callable[[], object]:
    """Make the tensors of an operation over n tokens and return what launches it on them.

    Queries, keys and values are views of one packed projection. pairs: each image attends to its neighbour
    too; else to itself alone. backward launches the backward pass alone. Local attention selects
    `LOCAL_RATIO` of the rows.
    """
    D, scale = head_dim, head_dim**-0.5
    q, k, v = torch.randn(batch, n, 3, heads, D, dtype=dtype, device=device).unbind(2)
    lse = torch.full((batch, heads, n), float(n), device=device)
    if op == "rollout_row":
        row = torch.full((batch, n), 1.0 / n, device=device)
        return lambda: triton_rollout.launch([q], [k], [lse], scale, row)
    partners: Partners | None = None
    index: Tensor | None = None
    if op == "pair_attention" and pairs:
        partners = inverted(torch.arange(batch, device=device).roll(1), batch)
    if op == "local_attention":
        index = torch.arange(max(1, int(n * LOCAL_RATIO)), device=device).repeat(batch, 1)
    attention = Attention(q, k, v, pairs=partners, rows=index, scale=scale)
    if not backward:
        return lambda: triton_launch.forward(op, attention)
    rows = n if index is None else index.shape[1]
    out, dout = (torch.randn(batch, rows, heads, D, dtype=dtype, device=device) for _ in range(2))
    lse = lse[:, :, :rows].contiguous()
    return lambda: triton_launch.backward(op, attention, dout, out, lse)


def launch_of(
    op: str,
    direction: str,
    head_dim: int,
    dtype: torch.dtype,
    n: int,
    arch: str,
    config: tuning.Config,
    pairs: bool = True,
) -> Launch:
    """The launch of a direction's kernel that the library would make on such a GPU with this
    configuration."""
    backward = direction in ("dkdv", "dq")

    def run() -> None:
        problem(op, head_dim, dtype, n, torch.device("cuda"), backward=backward, pairs=pairs)()

    with tuning.forced({(op, other): config for other in tuning.DIRECTIONS[op]}):
        launches = [launch for launch in capture(run, arch) if launch.name in KINDS]
    return next(launch for launch in launches if launch.name == KERNELS[direction])
