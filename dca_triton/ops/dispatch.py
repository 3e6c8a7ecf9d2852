"""When a call of the kernels must pass PyTorch's dispatcher, as an operator of `torch.library`."""

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN = {Tensor, Parameter, type(None)}


def needs_dispatcher(*tensors: Tensor | None) -> bool:
    """Whether PyTorch traces, transforms or intercepts operators that are called with these tensors.

    All other calls launch the kernels directly: an operator's wrappers in Python take more of the host's time
    than the rest of the call.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or not PLAIN.issuperset(map(type, tensors))
    )
