"""The kernel launches of each operation, on real tensors or on fake ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops import Partners, launch_table, triton_launch, triton_rollout
from ...ops.attention import Attention
from ...ops.pairing import invert_pairs
from .capture import Launch, capture
from .work import KINDS

LOCAL_RATIO = 0.3  # share of the rows that local attention selects, as in re-identification
KERNELS = {
    "forward": "attention_forward",
    "dkdv": "attention_dkdv",
    "dq": "attention_dq",
    "step": "rollout_columns",
}


@dataclass(frozen=True)
class Job:
    """One kernel on one GPU architecture.

    key: operation, direction, head dimension and dtype. n: tokens. config: the launch configuration. pairs:
    whether pair attention attends to a partner. separate: whether the partners' keys and values lie in
    tensors of their own.
    """

    key: launch_table.Key
    n: int
    arch: str
    config: launch_table.Config
    pairs: bool = True
    separate: bool = False


def problem(
    key: launch_table.Key,
    n: int,
    device: torch.device,
    *,
    pairs: bool = True,
    separate: bool = False,
    batch: int = 64,
    heads: int = 12,
) -> Callable[[], object]:
    """Make the tensors of an operation and return a function that launches its kernels on them.

    Args:
        key: The operation, head dimension and dtype. The direction decides which pass is launched, forward
            or backward.
        n: Tokens. Local attention selects `LOCAL_RATIO` of them.
        device: Where the tensors are. Queries, keys and values are views of one packed projection.
        pairs: Whether each image of pair attention attends to its neighbor too.
        separate: Whether the keys and values of the neighbors lie in tensors of their own.
        batch: Images.
        heads: Heads.
    """
    D, scale = key.head_dim, key.head_dim**-0.5
    dtype = launch_table.DTYPES[key.dtype]

    def projection() -> tuple[Tensor, ...]:
        return torch.randn(batch, n, 3, heads, D, dtype=dtype, device=device).unbind(2)

    q, k, v = projection()
    lse = torch.full((batch, heads, n), float(n), device=device)
    if key.op == "rollout_row":
        row = torch.full((batch, n), 1.0 / n, device=device)
        return lambda: triton_rollout.launch([q], [k], [lse], scale, row)
    partners: Partners | None = None
    partner_k: Tensor | None = None
    partner_v: Tensor | None = None
    index: Tensor | None = None
    if key.op == "pair_attention" and pairs:
        partners = invert_pairs(torch.arange(batch, device=device).roll(1), batch)
        if separate:
            _, partner_k, partner_v = projection()
    if key.op == "local_attention":
        index = torch.arange(max(1, int(n * LOCAL_RATIO)), device=device).repeat(batch, 1)
    attention = Attention(q, k, v, partner_k, partner_v, partners, index, scale)
    if key.direction == "forward":
        return lambda: triton_launch.forward(key.op, attention)
    rows = n if index is None else index.shape[1]
    out, dout = (torch.randn(batch, rows, heads, D, dtype=dtype, device=device) for _ in range(2))
    lse = lse[:, :, :rows].contiguous()
    return lambda: triton_launch.backward(key.op, attention, dout, out, lse)


def uses(job: Job) -> tuple[Job, ...]:
    """Return the jobs that launch the configuration of a job: itself, and that with separate partners.

    A configuration of pair attention must serve both, whose code differs.
    """
    return (job, replace(job, separate=True)) if job.key.op == "pair_attention" else (job,)


def launch_of(job: Job) -> Launch:
    """Return the launch that the library would make for a job on a GPU of its architecture.

    With separate partners, dK and dV take two launches; this is the one for the partners.
    """
    key = job.key

    def run() -> None:
        problem(key, job.n, torch.device("cuda"), pairs=job.pairs, separate=job.separate)()

    with launch_table.forced(
        {(key.op, direction): job.config for direction in launch_table.DIRECTIONS[key.op]}
    ):
        launches = [launch for launch in capture(run, job.arch) if launch.name in KINDS]
    return [launch for launch in launches if launch.name == KERNELS[key.direction]][-1]
