"""The processes of a launch: Accelerate's view of them, checked."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType

from ..arguments import raise_faults
from ..data.records import Batch
from .loader import sharding_faults


def make_accelerator(precision: str, batches: Iterable[Batch]) -> Accelerator:
    """Make the accelerator of this process.

    Args:
        precision: "no", "bf16" or "fp16".
        batches: What this process trains on.

    Raises:
        ValueError: A precision, batches or FSDP settings that do not fit the launch.
    """
    raise_faults(_precision_faults(precision))
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    raise_faults(sharding_faults(batches, accelerator.num_processes))
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision must be 'no' or 'bf16' on a CPU, got 'fp16'")
    raise_faults(_fsdp_faults(accelerator))
    return accelerator


def _precision_faults(precision: str) -> list[str]:
    """Accelerate computes in one precision in a process; none if no other was chosen before."""
    chosen = AcceleratorState().mixed_precision if is_initialized() else precision
    if precision == chosen:
        return []
    return [f"precision must be {chosen!r} as in the trainer before it in this process, got {precision!r}"]


def _fsdp_faults(accelerator: Accelerator) -> list[str]:
    """Return every reason why the FSDP settings of the launch cannot be used; none without FSDP."""
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is None or plugin.fsdp_version == 2:
        return []
    return [f"fsdp_version must be 2, got {plugin.fsdp_version}"]
