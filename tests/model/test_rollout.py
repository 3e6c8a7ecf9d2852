"""The rollout cache: exact, and not used where bytes cannot be read. See also test_rollout_changes.py."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from small_training import small_model
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from dca_triton import DualAttentionModel, pair_attention
from dca_triton.model import RolloutCache
from dca_triton.model.blocks import BlockTrace
from dca_triton.model.rollout import CHUNK, condense, rollout_of


@pytest.fixture(scope="module", params=["reference", "paper"])
def models(request):
    torch.manual_seed(0)
    cached = DualAttentionModel(
        "test_vit",
        5,
        img_size=64,
        layout=request.param,
        pretrained=False,
        top_k_ratio=0.3,
        **({"num_heads": 4, "num_sa_blocks": 3} if request.param == "reference" else {}),
    ).eval()
    plain = copy.deepcopy(cached)
    plain.cache = None
    return cached, plain


@pytest.fixture
def pair(models):
    models[0].clear_attention_cache()
    return models


IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def same(pair, images):
    cached, plain = pair
    with torch.no_grad():
        ours, truth = cached(images), plain(images)
    assert all(torch.equal(ours[name], truth[name]) for name in truth)


def stats(model):
    found = model.get_cache_stats()
    return found["cache_hits"], found["cache_misses"], found["cache_size"]


def test_same_permuted_and_mixed_batches(pair):
    same(pair, IMAGES[:4])
    assert stats(pair[0]) == (0, 4, 4)
    same(pair, IMAGES[:4])
    same(pair, IMAGES[[2, 0, 3, 1]])
    assert stats(pair[0]) == (8, 4, 4)
    same(pair, IMAGES[[5, 2, 4, 0]])
    assert stats(pair[0]) == (10, 6, 6)
    assert pair[0].get_cache_stats()["hit_rate"] == 10 / 16


def test_a_hit_computes_no_rollout(pair, monkeypatch):
    same(pair, IMAGES[:2])

    def refuse(*_, **__):
        raise AssertionError("rollout computed")

    monkeypatch.setattr("dca_triton.model.rollout.rollout_of", refuse)
    with torch.no_grad():
        pair[0](IMAGES[:2])
        with pytest.raises(AssertionError):
            pair[0](IMAGES[:3])


def test_one_changed_pixel_is_another_image(pair):
    same(pair, IMAGES[:2])
    changed = IMAGES[:2].clone()
    changed[0, 0, 0, 0] = torch.nextafter(changed[0, 0, 0, 0], torch.tensor(9.0))
    same(pair, changed)
    assert stats(pair[0]) == (1, 3, 3)


def test_changed_weights(pair):
    same(pair, IMAGES[:2])
    for model in pair:
        with torch.no_grad():
            model._sa_blocks[0].attn.qkv.weight.mul_(1.5)
    same(pair, IMAGES[:2])
    assert stats(pair[0])[0] == 0


def test_other_dtypes_and_autocast(pair):
    same(pair, IMAGES[:2])
    with torch.autocast("cpu", torch.bfloat16):
        same(pair, IMAGES[:2])
    assert stats(pair[0])[0] == 0


def test_training_leaves_the_cache_alone(pair):
    pair[0].train()(IMAGES[:2])
    pair[0].eval()
    assert stats(pair[0]) == (0, 0, 0)


def test_least_recently_used_goes_first(pair):
    pair[0].cache.entries = 3
    try:
        same(pair, IMAGES[:3])
        same(pair, IMAGES[:1])
        same(pair, IMAGES[3:4])
        assert stats(pair[0])[2] == 3
        hits = stats(pair[0])[0]
        same(pair, IMAGES[:1])
        assert stats(pair[0])[0] == hits + 1
        same(pair, IMAGES[1:2])
        assert stats(pair[0])[0] == hits + 1
    finally:
        pair[0].cache.entries = 4096


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(ValueError, match="entries must be an integer >= 1, got 0"):
        RolloutCache(0)


SCALE = 0.25


def packed(images: int = 4, tokens: int = 9, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(images, tokens, 3, 2, 16, generator=random).to(dtype) for _ in range(3)]


def traces_of(layers: list[Tensor], copied: bool = False) -> list[BlockTrace]:
    traces = []
    for layer in layers:
        q, k, v = layer.unbind(2)
        trace = BlockTrace(q, k, pair_attention(q, k, v)[1])
        traces.append(BlockTrace(*(part.contiguous() for part in trace[:3])) if copied else trace)
    return traces


def taken(traces: list[BlockTrace], index: list[int]) -> list[BlockTrace]:
    return [trace.of(torch.tensor(index)) for trace in traces]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_views_of_a_packed_projection_and_copies_are_one_image(dtype):
    cache = RolloutCache()
    layers = packed(dtype=dtype)
    first = cache.lookup(traces_of(layers), "auto")
    assert torch.equal(first, rollout_of(traces_of(layers), "auto"))
    assert torch.equal(first, cache.lookup(traces_of(layers, copied=True), "auto"))
    assert cache.stats()["cache_hits"] == 4


def test_a_hit_has_the_bits_of_the_first_computation_whatever_else_is_in_the_batch():
    cache = RolloutCache()
    traces = traces_of(packed(images=6))
    first = cache.lookup(taken(traces, [0, 1, 2, 3]), "auto")
    mixed = cache.lookup(taken(traces, [5, 2, 4, 0, 2]), "auto")
    assert torch.equal(mixed[[1, 3, 4]], first[[2, 0, 2]])
    torch.testing.assert_close(mixed, rollout_of(taken(traces, [5, 2, 4, 0, 2]), "auto"))
    assert torch.equal(cache.lookup(taken(traces, [4]), "auto"), mixed[[2]])
    assert (cache.hits, cache.misses) == (4, 6)


def test_one_bit_of_any_layer_is_another_image():
    cache = RolloutCache()
    traces = traces_of(packed(images=1), copied=True)
    cache.lookup(traces, "auto")
    for layer, trace in enumerate(traces):
        for place, part in enumerate(trace[:3]):
            for position in (0, part.numel() // 2, part.numel() - 1):
                changed = part.clone()
                changed.view(torch.int32).view(-1)[position] ^= 1
                others = [BlockTrace(*parts) for parts in traces]
                others[layer] = BlockTrace(*trace[:place], changed, *trace[place + 1 :])
                cache.lookup(others, "auto")
    assert (cache.hits, cache.misses) == (0, 28)


def test_what_else_decides_a_row_is_in_the_key():
    cache = RolloutCache()
    traces = traces_of(packed())
    cache.lookup(traces, "auto")
    cache.lookup(traces, "torch")
    cache.lookup(traces[:2], "auto")
    regrouped = [
        BlockTrace(q.reshape(4, 18, 1, 16), k.reshape(4, 18, 1, 16), lse.reshape(4, 1, 18))
        for q, k, lse, _ in traces_of(packed(), copied=True)
    ]
    cache.lookup(regrouped, "auto")
    assert cache.hits == 0


def test_the_last_layer_may_hold_the_class_token_alone():
    """Also with one head, where a dimension of size 1 has a stride of its own."""
    for traces in (traces_of(packed()), traces_of(packed()[:1])):
        for heads in (slice(None), slice(1)):
            *first, last = [BlockTrace(t.q[:, :, heads], t.k[:, :, heads], t.lse[:, heads]) for t in traces]
            short = [*first, BlockTrace(last.q[:, :1], last.k, last.lse[:, :, :1])]
            cache = RolloutCache()
            row = cache.lookup(short, "auto")
            torch.testing.assert_close(row, rollout_of([*first, last], "auto"))
            assert torch.equal(cache.lookup(short, "auto"), row)
            assert cache.stats()["cache_hits"] == len(row)


def test_no_entry_keeps_the_batch():
    cache = RolloutCache()
    cache.lookup(traces_of(packed()), "auto")
    for key, row in cache._rows.items():
        assert len(key) == 16
        assert row.untyped_storage().nbytes() == row.numel() * 4 == 9 * 4


def test_copies_and_pickles_are_empty_caches_with_another_seed():
    cache = RolloutCache(7)
    cache.lookup(traces_of(packed()), "auto")
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (other.entries, other.stats()["cache_size"]) == (7, 0)
        assert other._seed != cache._seed


def test_rows_of_inference_mode_serve_training_code():
    cache = RolloutCache()
    traces = traces_of(packed())
    with torch.inference_mode():
        cache.lookup(traces_of(packed()), "auto")
    rows = cache.lookup(traces, "auto")
    assert cache.hits == 4 and not rows.is_inference()
    weight = torch.ones(9, requires_grad=True)
    (rows @ weight).sum().backward()
    with torch.inference_mode():
        made = traces_of(packed())
    assert torch.equal(cache.lookup(made, "auto"), rows)


def in_fake_mode(call: Callable) -> None:
    with FakeTensorMode():
        assert call(torch.empty(4, 9, 3, 2, 16)).shape == (4, 9)


def on_meta(call: Callable) -> None:
    assert call(torch.empty(4, 9, 3, 2, 16, device="meta")).shape == (4, 9)


def by_make_fx(call: Callable) -> None:
    graph = make_fx(call)(packed()[0])
    torch.testing.assert_close(graph(packed()[1]), call(packed()[1]))


def by_vmap(call: Callable) -> None:
    layer = packed()[0]
    torch.testing.assert_close(torch.vmap(call)(layer[:, None])[:, 0], plain_row(layer))


def by_functional_gradient(call: Callable) -> None:
    layer = packed()[0]
    gradient = torch.func.grad(lambda x: call(x).sum() + x.square().sum())(layer)
    torch.testing.assert_close(gradient, 2 * layer)


def by_jit_trace(call: Callable) -> None:
    graph = torch.jit.trace(call, packed()[0], check_trace=False)
    torch.testing.assert_close(graph(packed()[1]), plain_row(packed()[1]))


def by_a_subclass(call: Callable) -> None:
    class Named(Tensor):
        pass

    layer = packed()[0]
    assert torch.equal(call(layer.as_subclass(Named)).as_subclass(Tensor), plain_row(layer))


def while_counting(call: Callable) -> None:
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            call(packed()[0])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def plain_row(layer: Tensor) -> Tensor:
    return rollout_of(traces_of([layer, layer]), "torch")


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace",
    "ignore::torch.jit.TracerWarning",
    "ignore:There is a performance drop",  # vmap of PyTorch's own attention, from PyTorch 2.15 on
)
@pytest.mark.parametrize(
    "way",
    [
        in_fake_mode,
        on_meta,
        by_make_fx,
        by_vmap,
        by_functional_gradient,
        by_jit_trace,
        by_a_subclass,
        while_counting,
    ],
)
def test_where_bytes_cannot_be_read_the_cache_is_not_used(way):
    cache = RolloutCache()
    cache.lookup(traces_of([packed()[0]] * 2), "torch")
    inside = []

    def call(layer):
        inside.append(True)
        traces = traces_of([layer, layer])
        seen = cache.stats()
        row = cache.lookup(traces, "torch")
        if len(inside) == 1:
            assert cache.stats() == seen
        return row

    way(call)
    assert inside


def test_a_default_device_does_not_matter(pair):
    with torch.device("meta"):
        same(pair, IMAGES[:2])
    same(pair, IMAGES[:2])
    assert stats(pair[0]) == (2, 2, 2)


def test_a_compiled_model_leaves_the_cache_alone():
    model = small_model(layout="reference", num_sa_blocks=2, num_glca_blocks=2).eval()
    images = IMAGES[:2, :, :16, :16]
    with torch.no_grad():
        plain = model(images)
        compiled = torch.compile(model, backend="eager")(images)
        torch.testing.assert_close(compiled["glca_features"], plain["glca_features"])
        assert stats(model) == (0, 2, 2)
        model(images)
    assert stats(model) == (2, 2, 2)
    torch._dynamo.reset()


MULTIPLIERS = torch.randint(-(2**63), 2**63 - 1, (2, 4, CHUNK), generator=torch.Generator().manual_seed(4))


def multilinear(data: bytes, multipliers: list[list[int]]) -> list[int]:
    data += bytes(-len(data) % (4 * CHUNK))
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    chunks = [words[i : i + CHUNK] for i in range(0, len(words), CHUNK)]
    return [
        sum(m * w for m, w in zip(row, chunk, strict=True)) % 2**64 >> 32
        for chunk in chunks
        for row in multipliers
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_hash_of_a_gpu_is_multilinear(dtype):
    """By Python's integers; more than one chunk, an odd number of bytes, strided parts."""
    whole = torch.randn(2, 3, 1375, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = [whole[:, 0], whole[:, 1:].transpose(1, 2)]
    first, second = MULTIPLIERS.tolist()
    for found, *image in zip(condense(parts, MULTIPLIERS), *parts, strict=True):
        words = [w for part in image for w in multilinear(part.contiguous().numpy().tobytes(), first)]
        assert found.tolist() == multilinear(b"".join(w.to_bytes(8, "little") for w in words), second)


def test_the_hash_of_a_gpu_sees_every_word():
    parts = torch.zeros(2 * CHUNK + 3, 2 * CHUNK + 3, dtype=torch.int32)[::97]
    parts[torch.arange(len(parts)), torch.arange(len(parts)) * 97 % parts.shape[1]] = 1
    digests = condense([parts], MULTIPLIERS)
    assert len({tuple(row) for row in digests.tolist()}) == len(parts)
    assert digests.shape == (len(parts), 4)


def test_the_way_of_a_gpu_gives_the_same_rows(monkeypatch):
    def condensed(self, parts, device):
        return [condense(parts, self._multipliers_on(device)).cpu()]

    monkeypatch.setattr(RolloutCache, "_host_parts", condensed)
    cache = RolloutCache()
    traces = traces_of(packed(images=6))
    first = cache.lookup(taken(traces, [0, 1, 2, 3]), "torch")
    mixed = cache.lookup(taken(traces, [5, 2, 4, 0]), "torch")
    assert torch.equal(mixed[[1, 3]], first[[2, 0]])
    assert (cache.hits, cache.misses) == (2, 6)
