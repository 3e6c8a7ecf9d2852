"""A training step and an evaluation of each layout: sound launches, and what PyTorch gives.

All tensors say that they are on the GPU here, so the other side names `backend="torch"`.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dca_triton.evaluation import predict
from dca_triton.model import DualAttentionModel
from dca_triton.training import UncertaintyWeightedLoss

pytestmark = pytest.mark.filterwarnings("ignore:no measured launch configurations")

CLASSES = 5


@pytest.fixture(autouse=True)
def plain_attention() -> Iterator[None]:
    """PyTorch's own fused kernels cannot run on a GPU that does not exist."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=["reference", "paper"])
def model(request: pytest.FixtureRequest) -> DualAttentionModel:
    """145 tokens, so that every kernel runs several tiles, and heads of 32."""
    torch.manual_seed(0)
    return DualAttentionModel(
        "test_vit", CLASSES, layout=request.param, pretrained=False, num_heads=2,
        img_size=96, patch_size=8, depth=2, num_sa_blocks=2, num_pwca_blocks=2, top_k_ratio=0.5,
        drop_path_rate=0.0,
    ).cuda()  # fmt: skip


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1)).cuda()


def step(
    model: DualAttentionModel, images: Tensor, backend: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The logits of a training step and the gradients of all parameters."""
    model.backend = backend
    losses = UncertaintyWeightedLoss()
    labels, partners = torch.tensor([0, 4, 2]).cuda(), torch.tensor([2, 0, 0]).cuda()
    outputs = model.train()(images, partner_index=partners)
    logits = {name: outputs[f"{name}_logits"] for name in ("sa", "glca", "pwca")}
    total = losses({name: F.cross_entropy(x, labels) for name, x in logits.items()})["total_loss"]
    parameters = {name: x for name, x in model.named_parameters() if x.requires_grad}
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return {name: x.detach() for name, x in logits.items()}, dict(zip(parameters, gradients, strict=True))


def test_training_step(model: DualAttentionModel, images: Tensor, launches: Callable[[], int]) -> None:
    expected, expected_gradients = step(model, images, "torch")
    assert launches() == 0
    logits, gradients = step(model, images, "triton")
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        largest = expected_gradients[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_evaluation(model: DualAttentionModel, images: Tensor, launches: Callable[[], int]) -> None:
    def probabilities(backend: str) -> dict[str, Tensor]:
        model.backend = backend
        return predict(model, [{"image": images, "label": torch.zeros(3)}], progress=False)[0]

    expected = probabilities("torch")
    assert launches() == 0
    torch.testing.assert_close(probabilities("triton"), expected, rtol=1e-5, atol=1e-5)
