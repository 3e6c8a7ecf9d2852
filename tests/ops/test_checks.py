"""Bad input of the public operations: one sentence with every reason."""

import re
from collections.abc import Callable

import pytest
import torch
from ops_cases import B, D, H, layers, normal, packed

from dca_triton import ops


def nested(x: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


def faulty(**changes: object) -> dict[str, object]:
    """Arguments of `pair_attention` that are right but for `changes`."""
    q, k, v = packed(B, 5, 3).unbind(2)
    pk, pv = packed(3, 7, 2).unbind(2)
    right = dict(q=q, k=k, v=v, partner_k=pk, partner_v=pv, partner_index=torch.tensor([0, 2, -1, 1]))
    return right | changes


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"q": normal(2, 3)}, [r"q must have shape \(B, M, H, D\), got \(2, 3\)"]),
        ({"q": torch.tensor(1.0)}, [r"q must have shape \(B, M, H, D\), got \(\)"]),
        ({"q": normal(B, 0, H, D)}, [r"q must have sizes >= 1, got shape \(4, 0, 2, 16\)"]),
        (
            {"k": normal(B, 6, H, 8)},
            [
                r"k must have q's B, H, D = 4, 2, 16, got shape \(4, 6, 2, 8\)",
                r"v must have k's shape \(4, 6, 2, 8\), got \(4, 5, 2, 16\)",
            ],
        ),
        (
            {"v": normal(B, 5, H, D, dtype=torch.float32)},
            ["v must have the dtype of q, torch.float64, got torch.float32"],
        ),
        ({"k": torch.empty(B, 5, H, D, device="meta")}, ["k must be on the device of q, cpu, got meta"]),
        ({"partner_v": None}, ["partner_v must be given with partner_k, got None"]),
        ({"partner_index": None}, ["partner_index must be given with partner_k, got None"]),
        (
            {"partner_v": normal(3, 6, H, D)},
            [r"partner_v must have partner_k's shape \(3, 7, 2, 16\), got \(3, 6, 2, 16\)"],
        ),
        (
            {"partner_k": normal(3, 7, 1, D)},
            [r"partner_k must have q's H, D = 2, 16, got shape \(3, 7, 1, 16\)"],
        ),
        ({"partner_index": torch.zeros(B)}, ["partner_index must be int32 or int64, got torch.float32"]),
        (
            {"partner_index": torch.zeros(2, dtype=torch.int64)},
            [r"partner_index must have shape \(B,\) with q's B = 4, got \(2,\)"],
        ),
        (
            {"partner_index": torch.zeros(B, 1, dtype=torch.int64)},
            [r"partner_index must have shape \(B,\), got \(4, 1\)"],
        ),
        (
            {"partner_index": torch.tensor([0, 3, 0, 0])},
            [r"must hold values in \[-1, 3\), got values from 0 to 3"],
        ),
        (
            {"partner_index": torch.tensor([-2, 0, 0, 0])},
            [r"must hold values in \[-1, 3\), got values from -2 to 0"],
        ),
        ({"scale": float("nan")}, ["scale must be a finite number >= 0 or None, got nan"]),
        ({"scale": True}, ["scale must .* got True"]),
        ({"scale": 10**400}, ["scale must .* got 1000"]),
        ({"scale": 10**5000}, ["scale must .* got a huge int"]),
        ({"scale": -1.0}, ["scale must .* got -1.0"]),
        (
            {"v": normal(3, 5), "partner_v": None, "partner_index": torch.zeros(2), "scale": float("inf")},
            [
                r"v must have shape \(B, N, H, D\), got \(3, 5\)",
                "partner_v must be given with partner_k, got None",
                "partner_index must be int32 or int64, got torch.float32",
                r"shape \(B,\) with q's B = 4, got \(2,\)",
                "scale must .* got inf",
            ],
        ),
    ],
)
def test_pair_attention_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    sentence(lambda: ops.pair_attention(**faulty(**changes)), reasons)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"index": torch.tensor([[5]] * B)}, [r"index must hold values in \[0, 5\), got values from 5 to 5"]),
        (
            {"index": torch.tensor([[-1]] * B)},
            [r"index must hold values in \[0, 5\), got values from -1 to -1"],
        ),
        (
            {"index": torch.zeros(B, 0, dtype=torch.int64)},
            [r"index must have sizes >= 1, got shape \(4, 0\)"],
        ),
        (
            {"index": torch.zeros(2, 3)},
            ["index must be int32 or int64, got torch.float32", r"\(B, R\) with q's B = 4, got \(2, 3\)"],
        ),
        ({"q": torch.tensor(1.0)}, [r"q must have shape \(B, M, H, D\), got \(\)"]),
        (
            {"k": normal(2, 5, H, D), "scale": "big"},
            [r"k must .* got shape \(2, 5, 2, 16\)", "v must", "scale must .* got 'big'"],
        ),
    ],
)
def test_local_attention_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    q, k, v = packed(B, 5, 3).unbind(2)
    right = dict(q=q, k=k, v=v, index=torch.zeros(B, 2, dtype=torch.int64))
    sentence(lambda: ops.local_attention(**(right | changes)), reasons)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"qs": []}, ["qs, ks and lses must hold one tensor for each of at least 1 layer, got 0, 3 and 3"]),
        ({"row": normal(2, 8)}, [r"row must have shape \(B, N\) = \(2, 9\), got \(2, 8\)"]),
        ({"row": torch.ones(2, 9, dtype=torch.int64)}, ["row must be float32 or float64, got torch.int64"]),
        (
            {"ks": [normal(2, 9, H, D), normal(2, 8, H, D), normal(2, 9, H, D)]},
            [r"ks\[1\] must have the shape of qs\[0\] \(2, 9, 2, 16\), got \(2, 8, 2, 16\)"],
        ),
        (
            {"lses": [normal(2, 9, H)] + [normal(2, H, 9)] * 2, "row": normal(9), "scale": -2},
            [
                r"lses\[0\] must have shape \(B, H, N\) = \(2, 2, 9\), got \(2, 9, 2\)",
                "row must",
                "scale must .* got -2",
            ],
        ),
        (  # only the last layer may hold the class token alone, only without a row, and then both do
            {"qs": [normal(2, 9, H, D), normal(2, 1, H, D), normal(2, 9, H, D)]},
            [r"qs\[1\] must have the shape of qs\[0\] \(2, 9, 2, 16\), got \(2, 1, 2, 16\)"],
        ),
        (
            {"qs": [normal(2, 9, H, D)] * 2 + [normal(2, 1, H, D)]},
            [r"qs\[2\] must have the shape of qs\[0\] \(2, 9, 2, 16\), got \(2, 1, 2, 16\)"],
        ),
        (
            {
                "qs": [normal(2, 9, H, D)] * 2 + [normal(2, 1, H, D)],
                "lses": [normal(2, H, 9)] * 2 + [normal(2, H, 1)],
                "row": torch.ones(2, 9),
            },
            [
                r"qs\[2\] must have the shape of qs\[0\]",
                r"lses\[2\] must have shape \(B, H, N\) = \(2, 2, 9\)",
            ],
        ),
        (
            {"lses": [normal(2, H, 9, dtype=torch.float16)] * 3},
            [r"lses\[2\] must be float32 or float64, got torch.float16"],
        ),
    ],
)
def test_rollout_row_names_every_fault(changes: dict[str, object], reasons: list[str]) -> None:
    qs, ks, lses = layers(9, torch.float64)
    sentence(lambda: ops.rollout_row(**(dict(qs=qs, ks=ks, lses=lses) | changes)), reasons)


def sentence(call: Callable[[], object], reasons: list[str]) -> None:
    """One line holds every reason."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert [reason for reason in reasons if re.search(reason, text) is None] == [], text


def test_a_backend_that_cannot_run_says_why() -> None:
    pytest.importorskip("triton")
    q, k, v = normal(1, 3, 1, 40).expand(3, 3, 1, 40).unbind(0)
    q, k, v = (x[None] for x in (q, k, v))
    lse = torch.zeros(1, 1, 3)
    for call in (
        lambda: ops.pair_attention(q, k, v, backend="triton"),
        lambda: ops.local_attention(q, k, v, backend="triton"),
        lambda: ops.rollout_row([q], [k], [lse], backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"on the CPU.*float64.*40"):
            call()


def test_an_unknown_backend() -> None:
    q, k, v = packed(1, 3, 3).unbind(2)
    with pytest.raises(ValueError, match="backend must be 'auto' or 'triton' or 'torch', got 'nonsense'"):
        ops.pair_attention(q, k, v, backend="nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda q: ops.pair_attention(q, None, q, partner_index=[1, 0]),
            "k must be a dense tensor, got NoneType; partner_index must be a dense tensor or None, got list",
        ),
        (lambda q: ops.local_attention(q, q, q, 0.5), "index must be a dense tensor or None, got float"),
        (
            lambda q: ops.rollout_row(q, [q], None),
            "qs must be a list or tuple .* Tensor; lses must .* NoneType",
        ),
        (lambda q: ops.pair_up([1, 0], 2), "index must be a dense tensor, got list"),
        (lambda q: ops.pair_attention(q.to_sparse(), q, q), r"q must be a dense .* layout torch\.sparse_coo"),
        (lambda q: ops.pair_attention(q, nested(q), q), "k must be a dense tensor, got a nested tensor"),
        (
            lambda q: ops.pair_attention(q, q, q, partner_index=ops.Partners(q, q, 3)),
            "partner_index.starts must be a dense tensor, got int",
        ),
        (lambda q: ops.rollout_row([q], [q], ["lse"]), r"lses\[0\] must be a dense tensor, got str"),
    ],
)
def test_arguments_that_are_not_tensors(call: Callable[[torch.Tensor], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(normal(B, 5, H, D))


@pytest.mark.parametrize(
    ("unpaired", "sentence"),
    [
        (-1, "unpaired must be an integer >= 0, got -1"),
        (True, "unpaired must be an integer >= 0, got True"),
        (4, "unpaired must be at most B = 3, got 4"),
        (2, r"index\[:unpaired\] must hold values in \[-1, 0\), got values from -1 to 1"),
    ],
)
def test_rows_that_are_said_to_have_no_partner_have_none(unpaired: int, sentence: str) -> None:
    index = torch.tensor([-1, 1, 0])
    with pytest.raises(ValueError, match=sentence):
        ops.pair_up(index, 2, unpaired)
    assert ops.pair_up(index, 2, 1).unpaired == ops.pair_up(index, 2, 1).behind(3).unpaired == 1
