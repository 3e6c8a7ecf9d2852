"""The classification head of a branch."""

from torch import nn

from .blocks import init_linears


def branch_head(dim: int, num_classes: int, task_type: str) -> nn.Module:
    """Class tokens (B, C) -> logits (B, K): a Linear for fgvc, Linear-BatchNorm1d-ReLU-Linear for reid."""
    head: nn.Module = nn.Linear(dim, num_classes)
    if task_type == "reid":
        head = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), head)
    init_linears(head)
    return head
