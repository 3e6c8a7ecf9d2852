"""Classification heads: today's defaults, and BNNeck against its formula."""

import pytest
import torch
from torch import nn

from dca_triton.model.blocks import init_linears
from dca_triton.model.heads import HEADS, branch_head


def made(*arguments, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return branch_head(*arguments)


@pytest.mark.parametrize(("task", "default"), [("fgvc", "linear"), ("reid", "mlp")])
def test_the_default_follows_the_task_bit_for_bit(task, default):
    truth, named = made(6, 3, task).state_dict(), made(6, 3, task, default).state_dict()
    torch.manual_seed(0)
    by_hand: nn.Module = nn.Linear(6, 3)
    if task == "reid":
        by_hand = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), by_hand)
    init_linears(by_hand)
    assert truth.keys() == named.keys() == by_hand.state_dict().keys()
    for name, value in by_hand.state_dict().items():
        assert torch.equal(truth[name], value) and torch.equal(named[name], value)
    others = [made(6, 3, task, head).state_dict().keys() for head in HEADS if head != default]
    assert all(keys != truth.keys() for keys in others)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_bnneck_is_a_norm_without_shift_and_a_linear_map(task):
    head = made(6, 3, task, "bnneck").double()
    norm, classifier = head
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert {name for name, _ in head.named_parameters()} == {"0.weight", "0.bias", "1.weight"}
    x = 3 + 2 * torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    spread = x.var(0, unbiased=False, keepdim=True)
    truth = (x - x.mean(0)) / (spread + norm.eps).sqrt() * norm.weight @ classifier.weight.T
    torch.testing.assert_close(head(x), truth)
    head.eval()
    mean, spread = 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0)
    truth = (x - mean) / (spread + norm.eps).sqrt() * norm.weight @ classifier.weight.T
    torch.testing.assert_close(head(x), truth)


def test_bnneck_starts_near_zero_and_its_shift_stays():
    head = made(512, 64, "reid", "bnneck")
    assert head[1].weight.std().item() == pytest.approx(0.001, rel=0.05)
    steps = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    head(torch.randn(8, 512)).square().sum().backward()
    before = head[0].weight.detach().clone()
    steps.step()
    assert not head[0].bias.any() and not torch.equal(head[0].weight, before)
