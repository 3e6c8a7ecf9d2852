"""What the rollout cache costs and saves on a CPU: `python -m bench.rollout_cache [rounds]`."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dca_triton import DualAttentionModel, pair_attention
from dca_triton.model import RolloutCache
from dca_triton.model.blocks import BlockTrace
from dca_triton.model.rollout import rollout_of

SHAPES = [
    ("deit_tiny_patch16_224", 3, 224, 4),
    ("deit_small_patch16_224", 6, 224, 4),
    ("deit_tiny_patch16_224", 3, 448, 1),
    ("deit_small_patch16_224", 6, 448, 1),
]


def ways(backbone: str, heads: int, size: int, batch: int) -> dict[str, Callable[[], object]]:
    """The parts that are timed: forwards without a cache, with misses, with hits; the hash; the rollout."""
    model = DualAttentionModel(backbone, 10, layout="paper", img_size=size, pretrained=False).eval()
    images = torch.randn(batch, 3, size, size)
    packed = [torch.randn(batch, (size // 16) ** 2 + 1, 3, heads, 64).unbind(2) for _ in range(12)]
    traces = [BlockTrace(q, k, pair_attention(q, k, v)[1]) for q, k, v in packed]
    cache = RolloutCache()

    def forward(kept: RolloutCache | None) -> Tensor:
        model.cache = kept
        return model(images)["glca_logits"]

    return {
        "no cache": lambda: forward(None),
        "misses": lambda: forward(RolloutCache()),
        "hits": lambda: forward(cache),
        "hash": lambda: cache._keys(traces, "auto"),
        "rollout": lambda: rollout_of(traces, "auto"),
    }


def seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


@torch.no_grad()
def main(rounds: int) -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        timed = ways(*shape)
        timed["hits"]()
        found = [{name: seconds(way) for name, way in timed.items()} for _ in range(rounds)]
        print(*shape)
        for name in timed:
            median = statistics.median(times[name] for times in found)
            ratio = statistics.median(times[name] / times["no cache"] for times in found)
            print(f"  {name:10} {1e3 * median:8.1f} ms, {ratio:.3f} of a forward without a cache")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
