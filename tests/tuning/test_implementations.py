"""Comparing the kernels with other attentions, with made-up kernels and times."""

import pytest
import torch
from torch import Tensor

from dca_triton.ops import fused, implementations, launch_table, torch_backend, triton_backend
from dca_triton.ops.attention import Attention
from dca_triton.ops.launch_table import AttentionKey
from dca_triton.tuning import implementations as comparison

CPU = torch.device("cpu")


def test_every_attention_is_compared_with_and_without_gradient() -> None:
    keys = comparison.keys(list(launch_table.DIRECTIONS), [64], ["fp16"], [197, 785])
    assert len(keys) == len(set(keys)) == 8
    assert {key.op for key in keys} == {"pair_attention", "local_attention"}
    assert comparison.keys(["rollout_row"], [64], ["fp16"], [197]) == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("op", comparison.OPS)
def test_what_differs_or_does_not_run_is_left_out(
    op: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        return fused._cpu(q, k, v, rest[0], None, 0.0)  # type: ignore[arg-type]

    def wrong(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = right(*arguments)
        return out * 1.1, lse

    def absent(*_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no kernel image")

    def own(a: Attention) -> object:
        return getattr(torch_backend, op)(a)

    monkeypatch.setattr(comparison, "BATCH", 2)
    monkeypatch.setattr(comparison, "HEADS", 2)
    monkeypatch.setattr(triton_backend, op, own)
    kernels = {"flash": right, "cudnn": wrong, "flash_attn_4": absent}
    monkeypatch.setattr(fused, "GPU_KERNELS", kernels)
    monkeypatch.setattr(implementations, "candidates", lambda _: list(kernels))
    ran: list[tuple[Tensor, ...]] = []

    def do_bench(run: comparison.Run, return_mode: str) -> float:
        ran.append(run())
        return float(len(ran))

    monkeypatch.setattr(comparison.triton.testing, "do_bench", do_bench)
    key = AttentionKey(op, training, 16, "fp32", 21)
    assert comparison.times_of(key, CPU) == {"triton": 1.0, "flash": 2.0}
    rows = 21 if op == "pair_attention" or training else 2
    assert [x.shape for x in ran[1]] == [(2, rows, 2, 16)] * (3 if training else 1)
    monkeypatch.setattr(triton_backend, op, absent)
    with pytest.raises(RuntimeError, match="no kernel image"):
        comparison.times_of(key, CPU)


def test_candidates_are_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "is_installed", lambda _: False)
    for capability, names in (((8, 0), ["flash"]), ((9, 0), ["flash", "cudnn"])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert implementations.candidates(torch.device("cuda")) == names
    monkeypatch.setattr(implementations, "is_installed", lambda _: True)
    assert implementations.candidates(torch.device("cuda"))[-1] == "flash_attn_4"
