"""What runs where: versions, devices, backends and launch choices, for `dca-triton info` and for bug
reports."""

import platform

import torch

from ..ops import launch_table, reasons_against_triton


def info(head_dim: int = 64, dtype: torch.dtype = torch.float16, n: int = 197) -> str:
    """Versions, then for each device the backend that `auto` takes with every reason, and its launch choices.

    The choices shown are those for this head dimension, dtype and length.
    """
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {launch_table.triton_version()}",
        f"CUDA {torch.version.cuda or '-'}, ROCm {torch.version.hip or '-'}",
    ]
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        gpu = launch_table.gpu_of(device)
        reasons = reasons_against_triton(torch.empty(1, head_dim, dtype=dtype, device=device))
        lines.append(f"{device}: {torch.cuda.get_device_name(device)} ({gpu.arch})")
        lines.append(f"  backend: {'torch, because ' + '; '.join(reasons) if reasons else 'triton'}")
        if not reasons:
            lines += [f"  {line}" for line in _choices(gpu, device, head_dim, dtype, n)]
    reasons = reasons_against_triton(torch.empty(1, head_dim, dtype=dtype))
    lines.append(f"cpu: backend: torch{', because ' + '; '.join(reasons) if reasons else ''}")
    return "\n".join(lines)


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
    return lines
