"""Wild arguments at the boundary of the operations: the right numbers or one clear sentence."""

import math

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dca_triton import ops, reference

EXAMPLES = 1200
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WILD = [torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8]
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

one_in_ten = st.integers(0, 9).map(lambda n: n == 0)
sizes = st.integers(1, 5)
D = st.sampled_from([1, 3, 16, 17])


@st.composite
def tensors(draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Nearly always of this shape and dtype; contiguous, transposed, expanded, or with odd values."""
    shape = list(shape)
    if draw(one_in_ten):
        change = draw(st.sampled_from(["grow", "shrink", "none left", "fewer", "more"]))
        if change == "fewer":
            shape.pop()
        elif change == "more":
            shape.append(2)
        else:
            axis = draw(st.integers(0, len(shape) - 1))
            shape[axis] = {"grow": shape[axis] + 1, "shrink": shape[axis] - 1, "none left": 0}[change]
    if draw(one_in_ten):
        dtype = draw(st.sampled_from(FLOATS + WILD))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 2
    if draw(one_in_ten) and values.numel():
        values.view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf, 3e38, 1e-45]))
    tensor = values.to(dtype)
    layout = draw(st.sampled_from(["plain", "transposed", "expanded", "strided", "meta"] + ["plain"] * 6))
    if layout == "transposed" and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "expanded" and tensor.dim() and tensor.shape[0] > 0:
        tensor = tensor[:1].expand_as(tensor)
    elif layout == "strided":
        tensor = torch.stack([tensor, tensor], -1)[..., 0]
    return tensor.to("meta") if layout == "meta" else tensor


@st.composite
def indices(draw, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Nearly always in [low, high)."""
    if draw(one_in_ten):
        low, high = low - 3, high + 3
    count = math.prod(shape)
    values = draw(st.lists(st.integers(low, high - 1), min_size=count, max_size=count))
    dtype = draw(st.sampled_from([torch.int64] * 6 + [torch.int32, torch.float32, torch.bool, torch.int16]))
    index = torch.tensor(values).reshape(shape).to(dtype)
    return index[..., None] if draw(one_in_ten) else index


scales = st.sampled_from([None] * 6 + [0.0, 0.5, 1, -1.0, math.nan, math.inf, "big"])
backends = st.sampled_from(["auto", "torch"] * 5 + ["triton", "cuda"])


def outcome(call) -> object:
    """The result, or the one sentence of a refusal."""
    try:
        return call()
    except (ValueError, RuntimeError) as error:
        text = str(error)
        assert "\n" not in text and len(text) > 20, text
        assert " must " in text or "cannot" in text, text
        event("refused")
        return None


def agree(ours: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    """Within the rounding of the dtype, where the inputs are tame."""
    event("computed")
    assert ours.shape == truth.shape
    if all(bool(x.isfinite().all()) and bool((x.abs() < 1e4).all()) for x in inputs):
        tolerance = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(inputs[0].dtype, 1e-3)
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


@fuzzed
@given(st.data())
def test_pair_attention(data):
    B, N, H, P, dim = (data.draw(s) for s in (sizes, sizes, sizes, sizes, D))
    dtype = data.draw(st.sampled_from(FLOATS))
    q, k, v = (data.draw(tensors((B, N, H, dim), dtype)) for _ in range(3))
    arguments = {"scale": data.draw(scales)}
    kind = data.draw(st.sampled_from(["none", "own", "others", "index only"]))
    others = P if kind == "others" else B
    if kind != "none":
        arguments["partner_index"] = data.draw(indices((B,), -1, others))
    if kind == "others":
        arguments |= {n: data.draw(tensors((P, N, H, dim), dtype)) for n in ("partner_k", "partner_v")}
    backend = data.draw(backends)
    found = outcome(lambda: ops.pair_attention(q, k, v, **arguments, backend=backend))
    if found is None or found[0].is_meta:
        return
    doubled = {n: x.double() if isinstance(x, Tensor) and x.dim() == 4 else x for n, x in arguments.items()}
    out, lse = reference.pair_attention(q.double(), k.double(), v.double(), **doubled)
    inputs = [q, k, v, *(x for n, x in arguments.items() if n in ("partner_k", "partner_v"))]
    agree(found[0], out, inputs)
    agree(found[1], lse, inputs)


@fuzzed
@given(st.data())
def test_local_attention(data):
    B, N, H, R, dim = (data.draw(s) for s in (sizes, sizes, sizes, sizes, D))
    dtype = data.draw(st.sampled_from(FLOATS))
    q, k, v = (data.draw(tensors((B, N, H, dim), dtype)) for _ in range(3))
    index = data.draw(st.none() | indices((B, R), 0, N))
    scale, backend = data.draw(scales), data.draw(backends)
    found = outcome(lambda: ops.local_attention(q, k, v, index, scale, backend=backend))
    if found is not None and not found.is_meta:
        agree(found, reference.local_attention(q.double(), k.double(), v.double(), index, scale), [q, k, v])


@fuzzed
@given(st.data())
def test_rollout_row(data):
    B, N, H, L, dim = (data.draw(s) for s in (sizes, sizes, sizes, st.integers(0, 3), D))
    dtype = data.draw(st.sampled_from(FLOATS))
    scale = data.draw(scales)
    qs, ks = ([data.draw(tensors((B, N, H, dim), dtype)) for _ in range(L)] for _ in range(2))
    lses = [data.draw(tensors((B, H, N), torch.float32)) for _ in range(L)]
    if data.draw(one_in_ten) and lses:
        lses.pop()
    row = data.draw(st.none() | tensors((B, N), torch.float32))
    found = outcome(lambda: ops.rollout_row(qs, ks, lses, scale, row, backend=data.draw(backends)))
    if found is None or found.is_meta:
        return
    wide = [[x.double() for x in part] for part in (qs, ks, lses)]
    truth = reference.rollout_row(*wide, scale, None if row is None else row.double())
    if truth.isfinite().all() and truth.abs().max() < 1e6:
        agree(found, truth, [*qs, *ks, *lses, *([] if row is None else [row])])
