"""A mode in which PyTorch's dispatcher says which operators are called."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CalledOperators(TorchDispatchMode):
    """Counts operators by name, such as "aten.mul.Tensor". A subclass may look at their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = str(operator), operator(*args, **(kwargs or {}))
        self.names[name] += 1
        self.look(name, tree_leaves((args, kwargs)), tree_leaves(result))
        return result

    def look(self, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        """Called after each operator with the leaves of its arguments and of its result."""
