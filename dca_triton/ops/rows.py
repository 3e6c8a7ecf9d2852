"""Some rows of each image."""

from torch import Tensor


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, R) of x (B, N, ...) -> (B, R, ...).

    `torch.take_along_dim` does the same, but pins the batch size in an exported graph.
    """
    wide = index.long().view(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, wide.expand(-1, -1, *x.shape[2:]))
