"""Rows of each image, chosen by an index."""

import torch

from dca_triton.ops.rows import take_rows


def test_rows_of_any_shape() -> None:
    index = torch.tensor([[2, 0, 2], [1, 1, 3]], dtype=torch.int32)
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 5)):
        x = torch.randn(shape)
        expected = torch.stack([each[rows] for each, rows in zip(x, index.long(), strict=True)])
        assert torch.equal(take_rows(x, index), expected)
