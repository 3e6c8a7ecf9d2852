"""From `DualAttentionModel.forward` to a public operation there are at most four functions."""

import sys
from collections.abc import Callable

import pytest
import torch
from small_training import small_model

from dca_triton.model import DualAttentionModel, blocks, glca, rollout

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PAIRS = {"no": {}, "x_pair": {"x_pair": IMAGES.flip(0)}, "index": {"partner_index": torch.tensor([1, -1, 0])}}


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, ...]]:
    """The library's own functions from the model's forward to each operation that it calls."""
    found: set[tuple[str, ...]] = set()

    def spied(name: str, operation: Callable) -> Callable:
        def spy(*args: object, **kwargs: object) -> object:
            path, frame = [name], sys._getframe(1)
            while frame.f_code is not DualAttentionModel.forward.__code__:
                if frame.f_globals["__name__"].startswith("dca_triton."):
                    path.append(frame.f_code.co_qualname)
                frame = frame.f_back
            found.add(tuple(reversed(path)))
            return operation(*args, **kwargs)

        return spy

    for module, names in (
        (blocks, ("pair_attention", "local_attention")),
        (glca, ("pair_attention", "local_attention")),
        (rollout, ("rollout_row",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, spied(name, getattr(module, name)))
    return found


@pytest.mark.parametrize("layout", ["paper", "reference"])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("class_tokens_only", [False, True])
def test_the_way_to_an_operation_is_short(
    paths: set[tuple[str, ...]], layout: str, pairs: str, class_tokens_only: bool
) -> None:
    small_model(layout=layout).train()(IMAGES, **PAIRS[pairs], class_tokens_only=class_tokens_only)
    attention = ("PairBlock.forward", "PairAttention.forward", "pair_attention")
    assert ("BranchStreams.sa_and_pwca", "sa_and_pwca_rows", *attention) in paths
    assert any(path[-1] == "local_attention" for path in paths)
    assert any(path[-1] == "rollout_row" for path in paths) != class_tokens_only
    assert all(len(path) <= 5 for path in paths), paths


@pytest.mark.parametrize("layout", ["paper", "reference"])
def test_a_longer_way_would_be_seen(paths: set[tuple[str, ...]], layout: str) -> None:
    """Gradient checkpointing adds two functions of the library."""
    model = small_model(layout=layout).train()
    model.set_grad_checkpointing()
    model(IMAGES)
    longest = max(paths, key=len)
    assert longest[2:5] == (
        "PairBlock.forward",
        "PairBlock._checkpointed",
        "PairBlock._checkpointed.<locals>.run",
    ), paths
    assert len(longest) == 8
