"""Whether a module computes what its class does, so that a part of it may be computed instead."""

from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` is `kind.forward` on its weights and nothing else.

    It is not with a subclass (adapters, parametrizations, FSDP), a replaced forward (offloading), any hook
    (pruning, old spectral norm), or a weight that is a subclass of Tensor (quantization, sharding).
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not any(len(those) for those in hooks)
        and not torch_module._has_any_global_hook()
        and all(p is None or type(p) in (nn.Parameter, Tensor) for p in module._parameters.values())
    )
