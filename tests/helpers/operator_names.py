"""A mode in which PyTorch's dispatcher says which operators are called."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorNames(TorchDispatchMode):
    """Collects the names of operators, such as "aten::mul"."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))
