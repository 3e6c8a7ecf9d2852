import pytest
import torch
from PIL import Image

from dca_triton.data import fgvc_test, fgvc_train, reid_test, reid_train, whole_batch_affine

PHOTO = Image.effect_noise((70, 90), 40).convert("RGB")


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (fgvc_train(), (448, 448)),
        (fgvc_train(resize=40, crop=32), (32, 32)),
        (fgvc_test(), (448, 448)),
        (fgvc_test(32), (32, 32)),
        (fgvc_test(32, resize=40), (32, 32)),
        (fgvc_test(32, resize=32), (32, 32)),
        (reid_train(), (256, 128)),
        (reid_train((64, 64)), (64, 64)),
        (reid_test(), (256, 128)),
        (reid_test((64, 64)), (64, 64)),
    ],
)
def test_shape_and_dtype(transform, shape):
    image = transform(PHOTO)
    assert type(image) is torch.Tensor
    assert image.shape == (3, *shape)
    assert image.dtype == torch.float32


@pytest.mark.parametrize("make", [fgvc_train, fgvc_test, reid_train, reid_test])
def test_normalization(make):
    gray = Image.new("RGB", (50, 60), (51, 102, 204))
    image = make(mean=(0.2, 0.3, 0.4), std=(0.5, 0.25, 2.0))(gray)
    plain = image.flatten(1).mode(dim=1).values  # padding and erasing leave most pixels alone
    torch.testing.assert_close(plain, torch.tensor([0.0, 0.4, 0.2]))


def test_test_transforms_see_the_whole_photo_undistorted():
    for transform in (fgvc_test(64), reid_test((64, 64))):
        image = transform(Image.linear_gradient("L").convert("RGB"))
        rows = image[0].mean(dim=1)
        assert (rows.diff() > 0).all()
        assert rows[0] < -1.9 and rows[-1] > 2.1
        torch.testing.assert_close(transform(PHOTO), transform(PHOTO))


def test_training_flips_crops_and_erases():
    torch.manual_seed(0)
    columns = Image.linear_gradient("L").rotate(90).convert("RGB")
    for transform in (fgvc_train(64, 48), reid_train((64, 64))):
        images = torch.stack([transform(columns) for _ in range(60)])
        directions = (images[:, 0, :, :8].mean((1, 2)) > images[:, 0, :, -8:].mean((1, 2))).float().mean()
        assert 0.25 < directions < 0.75
        assert len({image.sum().item() for image in images}) > 15
    # Erased pixels are random, so they break the photo's constant columns; half of the photos have some.
    inner = images[:, 0, 12:-12, 12:-12]
    erased = (inner.diff(dim=1).abs() > 0.2).any(dim=1).any(dim=1).float().mean()
    assert 0.25 < erased < 0.75


def test_center_crop_sees_the_middle_at_the_scale_of_training():
    whole = fgvc_test(80)(PHOTO)
    torch.testing.assert_close(fgvc_test(64, resize=80)(PHOTO), whole[:, 8:72, 8:72], atol=0, rtol=0)
    assert torch.equal(fgvc_test(80, resize=80)(PHOTO), whole)
    assert torch.equal(fgvc_test(64, resize=None)(PHOTO), fgvc_test(64)(PHOTO))
    assert not torch.equal(fgvc_test(64, resize=80)(PHOTO), fgvc_test(64)(PHOTO))
    with pytest.raises(ValueError, match="size must be at most resize, 60, got 64"):
        fgvc_test(64, resize=60)


def test_crop_larger_than_the_photo():
    with pytest.raises(ValueError, match="crop must be at most resize, 448, got 500"):
        fgvc_train(resize=448, crop=500)


def affine(images: torch.Tensor, seed: int = 0, **amounts: float) -> torch.Tensor:
    still = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "flip": False}
    return whole_batch_affine(images, torch.Generator().manual_seed(seed), **{**still, **amounts})


def test_affine_at_rest_is_the_identity():
    images = torch.rand(5, 3, 17, 23)
    torch.testing.assert_close(affine(images), images, atol=1e-4, rtol=0)


def test_affine_flips_half_and_only_flips():
    images = torch.rand(400, 1, 6, 7)
    result = affine(images, flip=True)
    flipped = torch.isclose(result, images.flip(-1), atol=1e-4).flatten(1).all(1)
    kept = torch.isclose(result, images, atol=1e-4).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 0.4 < flipped.float().mean() < 0.6


def blobs(batch: int, points: list[tuple[float, float]], height: int, width: int) -> torch.Tensor:
    """(batch, points, height, width): a smooth spot for each (x, y), in pixels from the center."""
    y = torch.arange(height).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    spots = [torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py in points]
    return torch.stack(spots).expand(batch, -1, -1, -1)


def centers(images: torch.Tensor) -> torch.Tensor:
    """(batch, points, 2): the spots' centers of mass (x, y), in pixels from the center."""
    height, width = images.shape[-2:]
    mass = images / images.sum((-2, -1), keepdim=True)
    x = (mass.sum(-2) * (torch.arange(width) - (width - 1) / 2)).sum(-1)
    y = (mass.sum(-1) * (torch.arange(height) - (height - 1) / 2)).sum(-1)
    return torch.stack([x, y], dim=-1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_affine_turns_by_angles_within_bounds_and_keeps_lengths(height, width):
    found = centers(affine(blobs(300, [(12.0, 0.0), (0.0, 12.0)], height, width), rotation=30.0))
    torch.testing.assert_close(found.norm(dim=-1), torch.full((300, 2), 12.0), atol=0.1, rtol=0)
    assert (found[:, 0] * found[:, 1]).sum(-1).abs().max() < 2.0  # the right angle between the two stays
    angles = torch.rad2deg(torch.atan2(found[:, 0, 1], found[:, 0, 0]))
    assert angles.abs().max() <= 30.3
    assert angles.min() < -25 and angles.max() > 25


def test_affine_scales_and_shifts_within_bounds():
    factors = centers(affine(blobs(300, [(10.0, 0.0), (0.0, 10.0)], 64, 64), scale=0.2)).norm(dim=-1) / 10
    torch.testing.assert_close(factors[:, 0], factors[:, 1], atol=0.01, rtol=0)
    assert 0.79 < factors.min() < 0.84 and 1.16 < factors.max() < 1.21
    moved = centers(affine(blobs(300, [(0.0, 0.0)], 40, 80), shift=0.1))[:, 0]
    assert moved[:, 0].abs().max() <= 8.01 and moved[:, 1].abs().max() <= 4.01
    assert moved[:, 0].abs().max() > 7 and moved[:, 1].abs().max() > 3.5
    assert moved.mean(0).abs().max() < 0.8


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_affine_composes_without_shear(height, width):
    points = [(10.0, 0.0), (0.0, 10.0), (0.0, 0.0)]
    amounts = {"rotation": 40.0, "scale": 0.2, "shift": 0.05, "flip": True}
    found = centers(affine(blobs(300, points, height, width), **amounts))
    x, y = found[:, 0] - found[:, 2], found[:, 1] - found[:, 2]
    torch.testing.assert_close(x.norm(dim=-1), y.norm(dim=-1), atol=0.15, rtol=0)
    assert (x * y).sum(-1).abs().max() < 2.5
    scaled = centers(
        affine(blobs(300, points, height, width), scale=0.2)
    )  # the same factors, by the same seed
    torch.testing.assert_close(x.norm(dim=-1), (scaled[:, 0] - scaled[:, 2]).norm(dim=-1), atol=0.15, rtol=0)
    turn = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
    assert 0.4 < (turn < 0).float().mean() < 0.6  # the mirrored ones


def test_affine_follows_its_generator_and_keeps_dtype():
    images = torch.rand(4, 3, 9, 9)
    generator = torch.Generator().manual_seed(1)
    first, second = (whole_batch_affine(images, generator) for _ in range(2))
    torch.testing.assert_close(
        whole_batch_affine(images, torch.Generator().manual_seed(1)), first, atol=0, rtol=0
    )
    assert not torch.equal(first, second)
    assert whole_batch_affine(images.double(), generator).dtype == torch.float64


def test_affine_all_reasons_at_once():
    with pytest.raises(ValueError) as caught:
        whole_batch_affine(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.Generator(), scale=1.0)
    assert "images must be a dense floating-point tensor (B, C, h, w) with sizes >= 1, got a uint8" in str(
        caught.value
    )
    assert "scale must be a number in [0, 1), got 1.0" in str(caught.value)
