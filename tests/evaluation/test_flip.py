"""Flip averaging: the mean over a photo and its mirror image, and nothing where it is off."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.evaluation import embed, evaluate_fgvc, evaluate_reid, flip_averaged

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(task: Any) -> DualAttentionModel:
    torch.manual_seed(0)
    return DualAttentionModel("test_vit", 6, task, layout="paper", img_size=32, pretrained=False)


class LeftHalf(nn.Module):
    """Logits that depend on the left half of a photo alone: a channel's mean for each of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, class_tokens_only: bool) -> dict[str, Tensor]:
        assert class_tokens_only and not self.training and not torch.is_grad_enabled()
        left = 40 * images[:, :, :, :16]
        tokens = images.new_zeros(len(images), 1, 4)
        return {
            "sa_logits": left.mean((2, 3)),
            "glca_logits": left[:, :, :16].mean((2, 3)),
            "sa_features": tokens,
        }


def batches(images: Tensor, labels: list[int], camera: int = -1) -> list[dict[str, Any]]:
    cameras = torch.full((len(images),), camera)
    return [{"image": images, "label": torch.tensor(labels), "camera": cameras}]


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_features_are_the_mean_of_both(task: Any) -> None:
    model = made(task)
    photos = batches(IMAGES, [0] * 6)
    plain, mirrored = (embed(model, batches(x, [0] * 6), progress=False) for x in (IMAGES, IMAGES.flip(3)))
    found = embed(flip_averaged(model), photos, progress=False)
    assert not model.training
    torch.testing.assert_close(found.features, (plain.features + mirrored.features) / 2)
    assert not torch.equal(found.features, plain.features)
    again = embed(flip_averaged(model), batches(IMAGES.flip(3), [0] * 6), progress=False)
    torch.testing.assert_close(again.features, found.features)


def test_categories_by_the_mean_probability() -> None:
    model: Any = LeftHalf().eval()
    with torch.no_grad():
        outputs = [model(x, class_tokens_only=True) for x in (IMAGES, IMAGES.flip(3))]
        found = flip_averaged(model)(IMAGES, class_tokens_only=True)
    assert found.keys() == {"sa_logits", "glca_logits"}
    for name in found:
        expected = (outputs[0][name].softmax(1) + outputs[1][name].softmax(1)) / 2
        torch.testing.assert_close(found[name].softmax(1), expected)
    plain = (outputs[0]["sa_logits"].softmax(1) + outputs[0]["glca_logits"].softmax(1)).argmax(1)
    both = (found["sa_logits"].softmax(1) + found["glca_logits"].softmax(1)).argmax(1)
    assert not torch.equal(plain, both)  # else the next lines prove nothing
    photos = batches(IMAGES, both.tolist())
    assert evaluate_fgvc(model, photos, progress=False, flip=True)["sum_top1"] == 1
    off = evaluate_fgvc(model, photos, progress=False)
    assert off == evaluate_fgvc(model, photos, progress=False, flip=False) and off["sum_top1"] < 1


def test_scores_of_retrieval_by_the_mean_features() -> None:
    model = made("reid")
    query, gallery = batches(IMAGES[:3], [0, 1, 2], 1), batches(IMAGES.flip(0), [0, 1, 2, 0, 1, 2], 2)
    off = evaluate_reid(model, query, gallery, progress=False)
    assert off == evaluate_reid(model, query, gallery, progress=False, flip=False)
    found = evaluate_reid(model, query, gallery, progress=False, flip=True)
    assert found == evaluate_reid(flip_averaged(model), query, gallery, progress=False) != off
    expanded = evaluate_reid(model, query, gallery, progress=False, expand=3)
    assert expanded != off
