"""Which calls pass PyTorch's dispatcher: those that something traces, transforms or intercepts."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from called_operators import CalledOperators
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dca_triton.ops.dispatch import needs_dispatcher


class Wrapped(Tensor):
    """Another library's tensor."""


def seen(run: Callable[[Callable[[Tensor], Tensor]], Any]) -> bool:
    """What `needs_dispatcher` says within `run`, which calls a function of one tensor."""
    answers = []

    def function(x: Tensor) -> Tensor:
        answers.append(needs_dispatcher(x, None))
        return x * 2

    run(function)
    (answer,) = set(answers)
    return answer


@pytest.mark.parametrize("x", [torch.ones(3), torch.nn.Parameter(torch.ones(3)), None], ids=type)
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode, torch.device])
def test_plain_calls_do_not(x: Tensor | None, context: Callable[..., AbstractContextManager]) -> None:
    with context("cpu") if context is torch.device else context():
        assert not needs_dispatcher(x, torch.ones(2), None)


def test_gradients_and_checkpointing_do_not() -> None:
    x = torch.ones(3, requires_grad=True)
    assert not seen(lambda f: f(x).sum().backward())
    assert not seen(lambda f: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False).sum().backward())


@pytest.mark.parametrize(
    "run",
    [
        lambda f: make_fx(f)(torch.ones(3)),
        lambda f: torch.func.grad(lambda x: f(x).sum())(torch.ones(3)),
        lambda f: torch.vmap(f)(torch.ones(2, 3)),
        lambda f: torch.func.functionalize(f)(torch.ones(3)),
        lambda f: f(torch.ones(3).as_subclass(Wrapped)),
    ],
    ids=["make_fx", "grad", "vmap", "functionalize", "subclass"],
)
def test_traced_and_transformed_calls_do(run: Callable[[Callable[[Tensor], Tensor]], Any]) -> None:
    assert seen(run)


def test_modes_do() -> None:
    with CalledOperators():
        assert needs_dispatcher(torch.ones(3))
    with FakeTensorMode():
        assert needs_dispatcher()
    assert not needs_dispatcher(torch.ones(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_does() -> None:
    assert seen(lambda f: torch.jit.trace(f, torch.ones(3), check_trace=False))


def test_compilers_do() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if needs_dispatcher(x) else x * 3

    assert torch.compile(Model(), backend="eager", fullgraph=True)(torch.ones(1)).item() == 2
    assert torch.export.export(Model(), (torch.ones(1),)).module()(torch.ones(1)).item() == 2
    assert Model()(torch.ones(1)).item() == 3
