"""DualAttentionModel in your own training loop, on noise of three brightnesses in place of photos.

Run it with `python examples/training_loop.py`. It takes a few seconds on a CPU.
"""

import torch
from torch.nn.functional import cross_entropy

from dca_triton import DualAttentionModel, PairSampler, UncertaintyWeightedLoss


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(size) % 3
    return torch.randn(size, 3, 32, 32) * 0.3 + (labels - 1).view(-1, 1, 1, 1), labels


def main(steps: int = 30) -> float:
    torch.manual_seed(0)
    model = DualAttentionModel("test_vit", 3, layout="paper", img_size=32, pretrained=False)
    pairs, weighting = PairSampler("random"), UncertaintyWeightedLoss()
    # Without weight decay on the loss weights: decay would pull them to 1.
    groups = [{"params": model.parameters()}, {"params": weighting.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    for step in range(steps):
        images, labels = batch()
        # The heads read class tokens only, so the last blocks need not compute the other rows.
        outputs = model(images, partner_index=pairs(labels), class_tokens_only=True)
        losses = {name: cross_entropy(outputs[f"{name}_logits"], labels) for name in ("sa", "glca", "pwca")}
        total = weighting(losses)["total_loss"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step:3}  loss {total.item():.3f}")

    model.eval()
    images, labels = batch(60)
    with torch.no_grad():
        outputs = model(images, class_tokens_only=True)
    # The paper's prediction is the sum of SA's and GLCA's probabilities.
    prediction = (outputs["sa_logits"].softmax(1) + outputs["glca_logits"].softmax(1)).argmax(1)
    accuracy = (prediction == labels).float().mean().item()
    print(f"top-1 on new noise: {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
