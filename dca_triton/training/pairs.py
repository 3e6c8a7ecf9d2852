"""Partners within a batch for pair-wise cross-attention (PWCA of DCAL)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import choice, number, raise_faults, violations
from ..tensor_arguments import tensor_violations

Strategy = Literal["random", "hard_negative", "mixed"]

ARGUMENT_RULES = {
    "strategy": choice(*get_args(Strategy)),
    "hard_ratio": number(lambda v: 0 <= v <= 1, "in [0, 1]"),
}


class PairSampler:
    """Choose a partner for each image of a batch, to pass to the model as `partner_index`.

    Args:
        strategy: "random" takes any other image with equal probability, whatever its label (the paper's
            choice); "hard_negative" takes the most similar image with another label, by cosine, or a random
            other image if all labels are equal; "mixed" chooses between the two for each image.
        hard_ratio: The probability, in [0, 1], that "mixed" takes the hard one.

    Raises:
        ValueError: Arguments outside their range, all of them at once.
    """

    def __init__(self, strategy: Strategy = "random", hard_ratio: float = 0.5) -> None:
        raise_faults(violations(locals(), ARGUMENT_RULES))
        self.strategy = strategy
        self.hard_ratio = hard_ratio

    @torch.no_grad()
    def __call__(
        self, labels: Tensor, features: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return partners (B,) int64 on the device of labels, never the image itself; -1 (none) if B is 1.

        The host does not wait for the device.

        Args:
            labels: (B,) integers.
            features: (B, C) floating point, needed by "hard_negative" and "mixed".
            generator: On the device of labels; PyTorch's default one if None.

        Raises:
            ValueError: Arguments of another type, shape, dtype or device, all of them at once.
        """
        self._check(labels, features, generator)
        B, device = len(labels), labels.device
        if B == 1:
            return torch.full((1,), -1, device=device)
        partner = torch.randint(B - 1, (B,), generator=generator, device=device)
        partner += partner >= torch.arange(B, device=device)  # B - 1 choices: skip the image itself
        if features is None or self.strategy == "random":
            return partner
        hard = _hard_negative(labels, features, otherwise=partner)
        if self.strategy == "hard_negative":
            return hard
        take_hard = torch.rand(B, generator=generator, device=device) < self.hard_ratio
        return torch.where(take_hard, hard, partner)

    def _check(self, labels: Tensor, features: Tensor | None, generator: torch.Generator | None) -> None:
        rules = {"labels": "integer (B,)"}
        if features is not None:
            rules["features"] = "floating-point (B, C)"
        faults = tensor_violations({"labels": labels, "features": features}, rules, same_device=True)
        if features is None and self.strategy != "random":
            faults.append(f"features must be given for strategy {self.strategy!r}, got None")
        if isinstance(labels, Tensor) and generator is not None:
            device, got = labels.device, generator.device
            if got.type != device.type:
                faults.append(f"generator must be on the device of labels, {device}, got {got}")
        raise_faults(faults)


def _hard_negative(labels: Tensor, features: Tensor, otherwise: Tensor) -> Tensor:
    same = labels[:, None] == labels  # [B, B]
    # In half precision norms overflow and near neighbors tie.
    with torch.autocast(labels.device.type, enabled=False):
        unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
        similarity = (unit @ unit.T).masked_fill(same, -torch.inf)  # [B, B]
    return torch.where(same.all(dim=1), otherwise, similarity.argmax(dim=1))
