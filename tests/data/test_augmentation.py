"""RandAugment against timm's own call, mixtures against their formulas."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import rand_augment_transform

from dca_triton.data import fgvc_train
from dca_triton.data.augmentation import RandAugment, mixing

DEIT = "rand-m9-mstd0.5-inc1"
PHOTO = Image.effect_noise((48, 64), 60).convert("RGB")


def states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def test_rand_augment_is_timms():
    ours = RandAugment(DEIT, 48, (0.5, 0.25, 0.0))
    theirs = rand_augment_transform(DEIT, {"translate_const": 21, "img_mean": (128, 64, 0)})
    found = set()
    for seed in range(6):
        torch.manual_seed(seed)
        image = ours(PHOTO)
        torch.manual_seed(seed)
        drawn = int(torch.randint(2**32, ()))
        random.seed(drawn)
        np.random.seed(drawn)  # noqa: NPY002
        assert image.tobytes() == theirs(PHOTO).tobytes()
        found.add(image.tobytes())
    assert len(found) > 3


def test_rand_augment_depends_on_pytorchs_generator_alone_and_leaves_the_others():
    transform = pickle.loads(pickle.dumps(fgvc_train(40, 32, rand_augment=DEIT, erase=0.5)))
    images = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = states()
        torch.manual_seed(0)
        images.append([transform(PHOTO) for _ in range(4)])
        assert states() == before
    assert all(map(torch.equal, *images))


def test_the_transform_names_its_augmentation_and_is_unchanged_without():
    plain, strong = fgvc_train(40, 32), fgvc_train(40, 32, rand_augment=DEIT, erase=0.25)
    assert f"RandAugment('{DEIT}')" in repr(strong) and "RandomErasing(p=0.25" in repr(strong)
    assert [type(step).__name__ for step in plain.transforms] == [
        type(step).__name__
        for step in strong.transforms
        if type(step).__name__ not in ("RandAugment", "RandomErasing")
    ]
    outputs = []
    for transform in (plain, fgvc_train(40, 32, rand_augment=None, erase=0.0), strong):
        torch.manual_seed(3)
        outputs.append(transform(PHOTO))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("policy", ["", "auto", "rand-x", "rand-w0", "rand-m9-q3", "original", 3])
def test_policies_that_are_refused(policy):
    with pytest.raises(ValueError, match=r"^rand_augment must be a policy of timm such as .*, got"):
        fgvc_train(40, 32, rand_augment=policy)


@pytest.mark.parametrize("erase", [-0.1, 1.5, "a"])
def test_probabilities_that_are_refused(erase):
    with pytest.raises(ValueError, match=r"^crop must be at most resize, .*; erase must be in \[0, 1\], got"):
        fgvc_train(32, 40, erase=erase)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_mixtures(batch):
    assert mixing(0.0, 0.0, 4) is None
    images, labels = torch.rand(batch, 3, 8, 8), torch.arange(batch) % 4
    for alphas in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        torch.manual_seed(5)
        mixed, soft = mixing(*alphas, 4)(images, labels)
        assert mixed.shape == images.shape and soft.shape == (batch, 4)
        torch.testing.assert_close(soft.sum(1), torch.ones(batch))
        share = float(soft[-1, labels[-1]])
        own, other = torch.eye(4)[labels], torch.eye(4)[labels.roll(1, 0)]
        torch.testing.assert_close(soft, share * own + (1 - share) * other)
        if alphas[1] == 0:
            torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
        elif alphas[0] == 0:
            pasted = (mixed != images).any(1)
            assert torch.equal(mixed.where(~pasted[:, None], images.roll(1, 0)), mixed)
            if batch > 1:
                assert pasted.float().mean().item() == pytest.approx(1 - share, abs=1e-6)


def test_both_mixtures_come_by_turns():
    both = mixing(1.0, 1.0, 4)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    pasted = {bool((both(images, labels)[0] == images).all(1).any()) for _ in range(20)}
    assert pasted == {True, False}
