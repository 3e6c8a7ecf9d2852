"""How far a result may be from float64: twice as far as the eager formula in its dtype, or a few ulps."""

import torch
from torch import Tensor

ULPS = 4


def rms(x: Tensor) -> Tensor:
    """Root mean square: the largest of many rounding errors is luck, one wrong element still stands out."""
    return x.double().square().mean().sqrt()


def no_further_than_twice_eager(
    result: Tensor,
    eager: Tensor,
    exact: Tensor,
    dtype: torch.dtype,
    name: str = "result",
    values: Tensor | None = None,
) -> None:
    """Assert rms(result - exact) <= max(2 rms(eager - exact), 4 ulps of the values).

    Without the floor, luck decides where both errors are about one rounding: eager may happen to be exact.

    Args:
        result: What is tested; NaN fails.
        eager: The same by `dca_triton.reference`, computed in `dtype`.
        exact: The same by `dca_triton.reference` in float64.
        dtype: The dtype of the inputs; its ulps count.
        values: Values whose size the rounding errors follow; `exact` by default.
    """
    assert result.shape == exact.shape, name
    size = rms(exact if values is None else values)
    allowed = max(2 * rms(eager.double() - exact), ULPS * torch.finfo(dtype).eps * size)
    error = rms(result.double() - exact)
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
