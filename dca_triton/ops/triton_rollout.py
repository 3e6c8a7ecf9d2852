"""Launch the rollout kernels: two launches per layer, one of them small, and nothing N x N in memory."""

import torch
from torch import Tensor

from ..kernels import rollout
from .dispatch import needs_dispatcher
from .triton_launch import FUSED, launch_options, rows, tiles

TOKENS = 128  # per program of `rollout_mix`, which only moves data


def rollout_row(
    qs: list[Tensor], ks: list[Tensor], lses: list[Tensor], scale: float, row: Tensor | None
) -> Tensor:
    """As `dca_triton.rollout_row`, for checked arguments; views of a packed projection are read in place."""
    run = _rollout_row if needs_dispatcher(*qs, *ks, *lses, row) else launch
    with torch.no_grad():
        return run(qs, ks, lses, scale, row)


@torch.library.custom_op("dca_triton::rollout_row", mutates_args=())
def _rollout_row(
    qs: list[Tensor], ks: list[Tensor], lses: list[Tensor], scale: float, row: Tensor | None
) -> Tensor:
    return launch(qs, ks, lses, scale, row)


@_rollout_row.register_fake
def _(qs: list[Tensor], ks: list[Tensor], lses: list[Tensor], scale: float, row: Tensor | None) -> Tensor:
    return lses[0].new_empty(ks[0].shape[:2], dtype=torch.float32)


def launch(
    qs: list[Tensor], ks: list[Tensor], lses: list[Tensor], scale: float, row: Tensor | None
) -> Tensor:
    """The work behind the operator; the static meter calls it too."""
    B, N, H, _ = ks[0].shape
    device = ks[0].device
    sums, offsets = (torch.empty(B, H, N, dtype=torch.float32, device=device) for _ in range(2))
    weighted = N  # how many leading rows of P are needed: one for the unit vector
    if row is None:
        weighted = 1
        row = torch.zeros(B, N, dtype=torch.float32, device=device)
        row[:, 0] = 1
    row = row.float().contiguous()
    # The last layer may hold the class token's row alone; the weights of all others are 0 there.
    lses = [lse.float().expand(B, H, N).contiguous() for lse in lses]
    tokens = (tiles(N, TOKENS) * B,)
    config, meta = launch_options("rollout_row", "step", ks[0])
    with torch.cuda.device_of(row):
        rollout.rollout_mix[tokens](row, None, lses[-1], None, offsets, N, H, BN=TOKENS, **FUSED)
        for layer in reversed(range(len(qs))):
            q, k = rows(qs[layer]), rows(ks[layer])
            rollout.rollout_columns[(tiles(N, config.block_n) * B * H,)](
                q, k, offsets, sums, *q.stride()[:3], *k.stride()[:3], weighted, N, H, scale,
                **meta,
            )  # fmt: skip
            lse = lses[layer - 1] if layer else None
            new = torch.empty_like(row)
            rollout.rollout_mix[tokens](row, sums, lse, new, offsets, N, H, BN=TOKENS, **FUSED)
            row, weighted = new, N
    return row
