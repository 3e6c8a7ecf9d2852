"""Which implementation `auto` takes by a GPU's table; the GPU and its times are made up."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tuning_cases import KEY, A, configs, on  # noqa: F401

from dca_triton import ops
from dca_triton.ops import fused, launch_table, rivals, torch_backend
from dca_triton.ops.attention import Attention
from dca_triton.ops.launch_table import AttentionKey

PAIR = AttentionKey("pair_attention", False, 64, "fp16", 197)
LOCAL = AttentionKey("local_attention", False, 64, "fp16", 197)


@pytest.fixture(autouse=True)
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "is_installed", lambda name: name != "flash_attn_4")


@pytest.mark.parametrize(
    ("ms", "taken", "words"),
    [
        ({"triton": 1.0}, None, "triton; nothing else runs"),
        ({"triton": 1.0, "flash": 0.98}, None, "triton; flash takes 0.98 of its time"),
        ({"triton": 1.0, "flash": 0.96}, "flash", "flash, which takes 0.96 of the kernels' time"),
        ({"triton": 2.0, "flash": 1.5, "cudnn": 1.0}, "cudnn", "cudnn, which takes 0.50"),
        ({"triton": 1.0, "flash_attn_4": 0.5}, None, "flash_attn_4, which is not installed, takes 0.50"),
        ({"triton": 1.0, "flash_attn_4": 0.5, "flash": 0.9}, "flash", "flash, which takes 0.90"),
    ],
)
def test_the_winner_beats_the_kernels_by_three_percent(ms: dict, taken: str | None, words: str) -> None:
    assert rivals.winner(ms) == taken
    assert words in rivals.sentence(PAIR, ms)
    assert rivals.sentence(PAIR, ms).startswith("pair_attention forward, N=197: ")


def test_a_package_that_is_broken_or_absent_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sound_one", ""), ("broken_one", "raise ImportError('undefined symbol')")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        (tmp_path / name / "cute.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = {name: rivals.can_import(f"{name}.cute") for name in ("sound_one", "broken_one", "absent_one")}
    assert found == {"sound_one": True, "broken_one": False, "absent_one": False}


def test_the_nearest_length_decides_and_nothing_unmeasured_is_taken() -> None:
    times = {PAIR: {"triton": 1.0}, PAIR._replace(n=785): {"triton": 1.0, "flash": 0.5}}
    found = [rivals.nearest(times, "pair_attention", False, 64, "fp16", n) for n in (1, 197, 390, 400, 9999)]
    assert [key and key.n for key in found] == [197, 197, 197, 785, 785]
    for other in (("local_attention", False, 64, "fp16"), ("pair_attention", True, 64, "fp16")):
        assert rivals.nearest(times, *other, 197) is None
    for other in (("pair_attention", False, 32, "fp16"), ("pair_attention", False, 64, "bf16")):
        assert rivals.nearest(times, *other, 197) is None


def test_auto_takes_what_the_table_says(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """On fake CUDA tensors: with and without gradient, and never with `backend="triton"`."""
    on(monkeypatch, "Fake", "sm_90")
    ms = {"triton": 1.0, "cudnn": 0.5}
    measured = {PAIR: ms, LOCAL: {"triton": 1.0, "flash": 0.5}, PAIR._replace(training=True): {"triton": 1.0}}
    launch_table.write(configs / "Fake.json", "measured on Fake", {KEY: {197: A}}, measured)
    assert launch_table.read_times(configs / "Fake.json") == measured
    launch_table.forget()
    taken: list[str | None] = []

    class Kernels(SimpleNamespace):
        def pair_attention(self, a: Attention) -> tuple[Tensor, Tensor]:
            taken.append("triton")
            return a.q, a.q

        local_attention = pair_attention

    def attend(a: Attention, kernel: str | None = None) -> tuple[Tensor, Tensor]:
        taken.append(kernel)
        return a.q, a.q

    monkeypatch.setattr(ops, "_choose", lambda *_, **__: Kernels())
    monkeypatch.setattr(torch_backend, "pair_attention", attend)
    monkeypatch.setattr(torch_backend, "local_attention", attend)
    with FakeTensorMode():
        q = torch.empty(2, 197, 3, 64, device="cuda", dtype=torch.float16)
        bias = torch.empty(1, 3, 197, 197, device="cuda", dtype=torch.float16)
        index = torch.zeros(2, dtype=torch.long, device="cuda")
        longer = torch.empty(2, 200, 3, 64, device="cuda", dtype=torch.float16)
        ops.pair_attention(q, q, q)
        ops.pair_attention(q, q, q, q, q, index)
        ops.local_attention(q, q, q)
        assert taken == ["cudnn", "cudnn", "flash"]
        taken.clear()
        ops.pair_attention(q.requires_grad_(), q, q)
        with torch.no_grad():
            ops.pair_attention(q, q, q)
        ops.pair_attention(q.detach(), longer, longer, q, q, index)  # needs a mask
        ops.pair_attention(q.detach(), q.detach(), q.detach(), bias=bias)
        ops.pair_attention(q.detach(), q.detach(), q.detach(), backend="triton")
    assert taken == ["triton", "cudnn", "triton", "triton", "triton"]


def test_flash_attn_4_is_called_as_its_package_defines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are (B, N, H, D) there, and the log-sum-exp comes on request."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor]:
        assert return_lse
        return fused.attention_with_lse(q, k, v, softmax_scale)

    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace(flash_attn_func=flash_attn_func))
    q, k, v = torch.randn(3, 4, 9, 2, 16)
    pairs = Attention(q, k, v, pairs=ops.pair_up(torch.tensor([-1, 2, -1, 0]), 4, unpaired=1))
    local = Attention(q, k, v, rows=torch.tensor([[1, 0]] * 4))
    expected = torch_backend.pair_attention(pairs), torch_backend.local_attention(local)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the index is not read, as on a GPU
    found = (
        torch_backend.pair_attention(pairs, kernel="flash_attn_4"),
        torch_backend.local_attention(local, kernel="flash_attn_4"),
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_each_kernel_of_pytorch_gives_both_results(kernel: str) -> None:
    with FakeTensorMode():
        q = torch.empty(2, 21, 3, 64, device="cuda", dtype=torch.float16)
        k = torch.empty(2, 50, 3, 64, device="cuda", dtype=torch.float16)
        out, lse = fused.attention_with_lse(q, k, k, 0.1, kernel=kernel)
    assert (out.shape, lse.shape, lse.dtype) == ((2, 21, 3, 64), (2, 3, 21), torch.float32)
