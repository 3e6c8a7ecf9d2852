"""Threads that evaluate on one model with its rollout cache on."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_training import small_model
from torch import Tensor

from dca_triton import pair_attention
from dca_triton.model import RolloutCache
from dca_triton.model.blocks import BlockTrace
from dca_triton.model.rollout import rollout_of

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", ["reference", "paper"])
@pytest.mark.parametrize("entries", [4096, 5])
def test_evaluation_from_several_threads(layout, entries):
    """Overlapping batches, in another order in each thread, with room for all rows or for few."""
    model = small_model(layout=layout, num_glca_blocks=2 if layout == "reference" else 1).eval()
    model.cache = RolloutCache(entries)
    plain = copy.deepcopy(model)
    plain.cache = None
    with torch.no_grad():
        truth = plain(IMAGES[:, None].flatten(0, 1))
    together = threading.Barrier(4)

    def work(seed: int) -> list[str]:
        order = torch.Generator().manual_seed(seed)
        wrong = []
        together.wait()
        for _ in range(12):
            index = torch.randint(
                len(IMAGES), (int(torch.randint(1, 7, (), generator=order)),), generator=order
            )
            with torch.no_grad():
                outputs = model(IMAGES[index])
            for name, value in outputs.items():
                if not torch.allclose(value, truth[name][index], rtol=1e-4, atol=1e-5):
                    wrong.append(f"{name} of {index.tolist()}")
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[]] * 4
    stats = model.get_cache_stats()
    assert stats["cache_size"] <= entries
    assert stats["cache_hits"] > 0
    assert stats["cache_size"] == entries or entries > len(IMAGES)


def some_traces(images: int) -> list[BlockTrace]:
    random = torch.Generator().manual_seed(2)
    heads = torch.randn(2, 2, images, 5, 2, 16, generator=random)
    return [BlockTrace(q, k, pair_attention(q, k, k)[1]) for q, k in heads]


def taken(traces: list[BlockTrace], index: Tensor) -> list[BlockTrace]:
    return [trace.of(index) for trace in traces]


def test_statistics_lose_no_image():
    cache = RolloutCache()
    traces = some_traces(50)
    truth = rollout_of(traces, "torch")
    together = threading.Barrier(4)

    def work(_: int) -> None:
        together.wait()
        for index in torch.arange(50).split(5):
            torch.testing.assert_close(cache.lookup(taken(traces, index), "torch"), truth[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    stats = cache.stats()
    assert stats["cache_hits"] + stats["cache_misses"] == 200
    assert stats["cache_size"] == 50


def test_clearing_while_others_look_up():
    cache = RolloutCache(20)
    traces = some_traces(40)
    truth = rollout_of(traces, "torch")
    ended = threading.Event()

    def clear() -> None:
        while not ended.is_set():
            cache.clear()
            cache.stats()

    with ThreadPoolExecutor(4) as pool:
        clearing = pool.submit(clear)

        def look(seed: int) -> None:
            order = torch.Generator().manual_seed(seed)
            for _ in range(100):
                index = torch.randperm(40, generator=order)[:6]
                torch.testing.assert_close(cache.lookup(taken(traces, index), "torch"), truth[index])

        try:
            list(pool.map(look, range(3)))
        finally:
            ended.set()
        clearing.result()
