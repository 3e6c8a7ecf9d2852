"""Who distracts whom: partners within a batch for pair-wise cross-attention (PWCA of DCAL)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import number, violations
from .ops import checks

Strategy = Literal["random", "hard_negative", "mixed"]


class PairSampler:
    """Names for each image of a batch another one of it, to be given to the model as `partner_index`.

    Args:
        strategy: "random" takes any other image, each as likely, whatever its label (the paper's choice);
            "hard_negative" the most similar image, by cosine, of another label, or a random other image
            where all labels are the same; "mixed" decides between the two for each image.
        hard_ratio: the probability, in [0, 1], that "mixed" takes the hard one.

    Raises:
        ValueError: naming every argument outside its range.
    """

    def __init__(self, strategy: Strategy = "random", hard_ratio: float = 0.5) -> None:
        faults = []
        if strategy not in get_args(Strategy):
            faults.append(f"strategy is {strategy!r}; allowed are {get_args(Strategy)}")
        faults += violations(
            {"hard_ratio": hard_ratio}, {"hard_ratio": number(lambda v: 0 <= v <= 1, "in [0, 1]")}
        )
        _raise(faults)
        self.strategy = strategy
        self.hard_ratio = hard_ratio

    @torch.no_grad()
    def __call__(
        self, labels: Tensor, features: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Partners (B,) int64 on the labels' device, none its own; -1, no partner, where B is 1.

        Nothing waits for the device.

        Args:
            labels: (B,) integers.
            features: (B, C) floating point, needed by "hard_negative" and "mixed".
            generator: on the labels' device; torch's own by default.

        Raises:
            ValueError: naming every argument of another shape, dtype or device, or missing.
        """
        self._check(labels, features, generator)
        B, device = len(labels), labels.device
        if B == 1:
            return torch.full((1,), -1, device=device)
        partner = torch.randint(B - 1, (B,), generator=generator, device=device)
        partner += partner >= torch.arange(B, device=device)  # B - 1 choices: step over oneself
        if features is None or self.strategy == "random":
            return partner
        hard = _hard_negative(labels, features, otherwise=partner)
        if self.strategy == "hard_negative":
            return hard
        take_hard = torch.rand(B, generator=generator, device=device) < self.hard_ratio
        return torch.where(take_hard, hard, partner)

    def _check(self, labels: Tensor, features: Tensor | None, generator: torch.Generator | None) -> None:
        checks.check_tensors({"labels": labels}, features=features)
        faults = []
        if labels.dim() != 1 or not labels.numel() or labels.is_floating_point():
            faults.append(f"labels is {tuple(labels.shape)} {labels.dtype}; allowed is (B,) integers, B >= 1")
        if features is None:
            if self.strategy != "random":
                faults.append(f"features is None; strategy {self.strategy!r} needs (B, C) features")
        elif features.dim() != 2 or len(features) != labels.numel() or not features.is_floating_point():
            faults.append(
                f"features is {tuple(features.shape)} {features.dtype}; "
                f"allowed is (B, C) floating point with B = {labels.numel()} as in labels"
            )
        elif features.device != labels.device:
            faults.append(f"features is on {features.device}; allowed is labels' device, {labels.device}")
        if generator is not None and generator.device.type != labels.device.type:
            faults.append(f"generator is on {generator.device}; allowed is labels' device, {labels.device}")
        _raise(faults)


def _hard_negative(labels: Tensor, features: Tensor, otherwise: Tensor) -> Tensor:
    same = labels[:, None] == labels  # [B, B]
    # In half precision norms overflow and near neighbours tie.
    with torch.autocast(labels.device.type, enabled=False):
        unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
        similarity = (unit @ unit.T).masked_fill(same, -torch.inf)  # [B, B]
    return torch.where(same.all(dim=1), otherwise, similarity.argmax(dim=1))


def _raise(faults: list[str]) -> None:
    if faults:
        raise ValueError("; ".join(faults))
