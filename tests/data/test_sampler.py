from collections import Counter
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dca_triton.data import IdentitySampler

LABELS = st.lists(st.integers(-3, 8), min_size=1, max_size=60)


def reachable(counts: list[int], k: int, p: int) -> int:
    """How many batches of p distinct identities dealing the fullest hands first makes: the greedy optimum."""
    hands = sorted((-(-count // k) for count in counts), reverse=True)
    batches = 0
    while len(hands) >= p and hands[p - 1] > 0:
        hands = sorted([hand - 1 for hand in hands[:p]] + hands[p:], reverse=True)
        batches += 1
    return batches


@settings(max_examples=200, deadline=None)
@given(
    labels=LABELS, p=st.integers(1, 4), k=st.integers(1, 5), world=st.integers(1, 3), epoch=st.integers(0, 3)
)
def test_an_epoch_over_all_ranks(labels, p, k, world, epoch):
    counts = Counter(labels)
    expected = reachable(list(counts.values()), k, p) // world
    if len(counts) < p or not expected:
        with pytest.raises(ValueError, match="labels must hold"):
            IdentitySampler(labels, p, k, seed=5, world_size=world)
        return
    samplers = [IdentitySampler(labels, p, k, seed=5, rank=rank, world_size=world) for rank in range(world)]
    groups = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == expected
        for batch in batches:
            rows = torch.tensor(batch).view(p, k).tolist()
            owners = [{labels[index] for index in row} for row in rows]
            assert all(len(owner) == 1 for owner in owners)
            assert len(set.union(*owners)) == p
            groups += rows
    for label, count in counts.items():
        uses = Counter(index for row in groups if labels[row[0]] == label for index in row)
        # A photo comes again only to fill up its identity's last group.
        assert sum(uses.values()) - len(uses) <= -count % k
        assert max(uses.values(), default=0) <= -(-k // min(count, k)) + (count >= k)
        if count >= k:
            assert all(len(set(row)) == k for row in groups if labels[row[0]] == label)


def test_every_photo_is_dealt_when_batches_come_out_even():
    labels = torch.arange(6).repeat_interleave(8)
    batches = list(IdentitySampler(labels, p=3, k=4))
    assert len(batches) == 4
    assert sorted(chain.from_iterable(batches)) == list(range(48))


def test_photos_repeat_only_when_an_identity_has_too_few():
    labels = [0] * 3 + [1] * 8
    (batch,) = IdentitySampler(labels, p=2, k=8)
    assert sorted(index for index in batch if index >= 3) == list(range(3, 11))
    assert sorted(Counter(index for index in batch if index < 3).values()) == [2, 3, 3]


def test_order_follows_seed_and_epoch():
    labels = torch.arange(10).repeat_interleave(9)

    def epoch(seed: int, number: int) -> list[list[int]]:
        sampler = IdentitySampler(labels, p=4, k=2, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0, 0) == epoch(0, 0)
    assert all(a != b for a, b in pairwise([epoch(0, 0), epoch(0, 1), epoch(7, 0)]))


def test_no_photo_is_preferred_over_the_epochs():
    """5 identities for batches of 2: one group of each epoch is left out, every time another one."""
    sampler = IdentitySampler(torch.arange(5).repeat_interleave(2), p=2, k=2)
    uses = Counter()
    for number in range(200):
        sampler.set_epoch(number)
        uses.update(index for batch in sampler for index in batch)
    assert len(sampler) == 2
    assert all(130 <= uses[index] <= 190 for index in range(10))


def test_all_reasons_at_once():
    with pytest.raises(ValueError) as caught:
        IdentitySampler([0, 0, 1], p=3, k=0, rank=2, world_size=2)
    message = str(caught.value)
    assert "k must be an integer >= 1, got 0" in message
    assert "rank must be in 0..world_size-1, 1, got 2" in message
    assert "labels must hold at least p=3 identities, got 2" in message
