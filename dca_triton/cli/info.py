"""What runs where: versions, devices, backends and launch choices, for `dca-triton info` and for bug
reports."""

import itertools
import platform
from typing import NamedTuple

import torch

from ..ops import implementations, launch_table, reasons_against_triton


class Heads(NamedTuple):
    """Attentions of heads D wide over N tokens, and why the kernels do not compute them, if so."""

    head_dim: int = 64
    n: int = 197
    reasons: tuple[str, ...] = ()


def info(
    backbone_name: str | None = None,
    img_size: int | tuple[int, int] = 224,
    dtype: torch.dtype = torch.float16,
) -> str:
    """Versions, then for each device the backend that `auto` takes with every reason, and its launch choices.

    Args:
        backbone_name: A timm model; what is shown is for its attentions in layout="paper". By default it is
            for heads of 64 and 197 tokens.
        img_size: Pixels, a side or (height, width), which decide the backbone's tokens.
        dtype: Of the attentions.

    Raises:
        ValueError: A backbone that layout="paper" cannot use, or a size that does not fit it.
    """
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {launch_table.triton_version()}",
        f"CUDA {torch.version.cuda or '-'}, ROCm {torch.version.hip or '-'}",
    ]
    heads = Heads()
    if backbone_name is not None:
        about, heads = heads_of(backbone_name, img_size)
        lines += about
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        gpu = launch_table.gpu_of(device)
        reasons = _reasons(heads, dtype, device)
        lines.append(f"{device}: {torch.cuda.get_device_name(device)} ({gpu.arch})")
        lines.append(f"  backend: {'torch, because ' + '; '.join(reasons) if reasons else 'triton'}")
        if not reasons:
            lines += [f"  {line}" for line in _choices(gpu, device, heads.head_dim, dtype, heads.n)]
    reasons = _reasons(heads, dtype, torch.device("cpu"))
    lines.append(f"cpu: backend: torch{', because ' + '; '.join(reasons) if reasons else ''}")
    return "\n".join(lines)


def heads_of(backbone_name: str, img_size: int | tuple[int, int]) -> tuple[list[str], Heads]:
    """Lines about a backbone, which is built without weights, and its attentions."""
    from ..model.backbone import Backbone
    from ..model.blocks import PairAttention

    with torch.device("meta"):
        backbone = Backbone(backbone_name, "paper", False, img_size)
    attentions = [module for module in backbone.modules() if isinstance(module, PairAttention)]
    rows, columns = backbone.grid_size
    N = backbone.num_prefix_tokens + rows * columns
    reasons = dict.fromkeys(reason for each in attentions for reason in each.reasons_against_triton)
    widths = [each.proj.in_features // each.num_heads for each in attentions]
    H, D = (
        ", ".join(map(str, dict.fromkeys(numbers)))
        for numbers in ((each.num_heads for each in attentions), widths)
    )
    glca = ", local_attention (GLCA) and rollout_row run" if "glca" in backbone.branches else " runs"
    about = [
        f"{backbone_name}: {len(attentions)} blocks, H={H} heads of D={D}, N={N} tokens",
        f"  pair_attention (SA, PWCA){glca} on the backends below",
        f'  layout="reference" has SA blocks of its own, D={backbone.embed_dim}/num_heads',
    ]
    return about, Heads(widths[0], N, tuple(reasons))


def _reasons(heads: Heads, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Every reason why these attentions do not run on Triton."""
    return [
        *reasons_against_triton(torch.empty(1, heads.head_dim, dtype=dtype, device=device)),
        *heads.reasons,
    ]


def _choices(
    gpu: launch_table.Gpu, device: torch.device, head_dim: int, dtype: torch.dtype, n: int
) -> list[str]:
    measured, _ = launch_table.tables(gpu)
    name = launch_table.dtype_name(dtype)
    lines = [f"launch choices for D={head_dim}, {name}, N={n} (`{launch_table.COMMAND}` measures):"]
    for op, directions in launch_table.DIRECTIONS.items():
        for direction in directions:
            config = launch_table.choose(op, direction, head_dim, dtype, n, device)
            known = launch_table.Key(op, direction, head_dim, name) in measured
            origin = "measured on this GPU" if known else "the static model's"
            lines.append(f"  {op} {direction}: {config}, {origin}")
    times = launch_table.times(gpu)
    kinds = itertools.product(("pair_attention", "local_attention"), (False, True))
    nearest = [implementations.nearest(times, *kind, head_dim, name, n) for kind in kinds]
    told = [f"  {implementations.sentence(key, times[key])}" for key in nearest if key is not None]
    return [
        *lines,
        "implementation that backend='auto' takes:",
        *(told or ["  triton; others not measured"]),
    ]
