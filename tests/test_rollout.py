"""The rollout cache: always right, and never a difference but in time."""

import copy

import pytest
import torch

from dca_triton import DualAttentionModel
from dca_triton.rollout import RolloutCache


@pytest.fixture(scope="module", params=["reference", "paper"])
def models(request):
    torch.manual_seed(0)
    cached = DualAttentionModel(
        "test_vit",
        5,
        num_heads=4,
        num_sa_blocks=3,
        img_size=64,
        layout=request.param,
        pretrained=False,
        top_k_ratio=0.3,
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

    monkeypatch.setattr("dca_triton.model.rollout_of", refuse)
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
