"""Record kernel launches without a GPU, exactly as on a GPU, and compile them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ...ops import launch_table


class Pointer:
    """A tensor argument of a recorded launch; its address is as aligned as its offset in the storage."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)
        self.bytes = tensor.numel() * tensor.element_size()
        self.offset = int(tensor.storage_offset()) * tensor.element_size()
        self.storage = tensor.untyped_storage()._cdata
        self.storage_bytes = tensor.untyped_storage().size()

    def data_ptr(self) -> int:
        """Return an address with the alignment that the launcher would see."""
        return (1 << 20) + self.offset

    def ptr_range(self) -> int:
        """Return the bytes of the storage; AMD launches use buffer instructions where they are below 2^31."""
        return self.storage_bytes


@dataclass
class Launch:
    """One kernel launch: the specialization that a launcher with a GPU would compile, and the grid.

    arguments: the value of each parameter; a `Pointer` for a tensor, None for an absent one.
    """

    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__

    @property
    def programs(self) -> int:
        """The number of programs in the grid."""
        return math.prod(self.grid)

    def compile(self, arch: str) -> Any:
        """Compile ahead of time for an architecture, e.g. `sm_90` or `gfx942`."""
        source = ASTSource(self.kernel, self.signature, self.constexprs, self.attributes)
        return triton.compile(source, target=target_of(arch), options=self.options)


def target_of(arch: str) -> GPUTarget:
    """Return Triton's target for an architecture; CDNA chips (gfx9) have waves of 64 lanes."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)


def capture(run: Callable[[], object], arch: str) -> list[Launch]:
    """Return the launches that `run` makes; `run` creates its own CUDA tensors, which are fake here."""
    launches: list[Launch] = []
    backend = make_backend(target_of(arch))

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        args = tuple(Pointer(a) if isinstance(a, Tensor) else a for a in args)
        kwargs = {name: Pointer(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = bind(*args, **kwargs, debug=False)
        _, signature, constexprs, attributes = kernel._pack_args(
            backend, kwargs, bound, specialization, options
        )
        extents = grid(bound) if callable(grid) else grid
        options = {name: value for name, value in kwargs.items() if name not in bound}
        launches.append(Launch(kernel, signature, constexprs, attributes, options, tuple(extents), bound))

    with _without_driver(record, arch), FakeTensorMode():
        run()
    if not launches:
        raise RuntimeError("no kernel was launched, so there is nothing to measure")
    return launches


@contextmanager
def _without_driver(record: Callable[..., None], arch: str) -> Iterator[None]:
    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launch_table, "gpu_of", lambda device: launch_table.Gpu(arch, arch)),
        mock.patch.object(torch.cuda, "device_of", lambda tensor: nullcontext()),
    ):
        yield
