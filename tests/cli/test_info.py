"""What `dca-triton info` says about a backbone; its launch tables are in tests/ops/test_launch_table.py."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dca_triton.cli import info
from dca_triton.cli.main import main
from dca_triton.model.vit import Attention
from dca_triton.ops import launch_table


def test_a_backbone_is_named_with_its_heads_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "--backbone_name=vit_small_patch14_dinov2", "--img_size=[28, 42]"])
    text = capsys.readouterr().out
    assert "vit_small_patch14_dinov2: 12 blocks, H=6 heads of D=64, N=7 tokens" in text
    assert 'layout="reference" has SA blocks of its own, D=384/num_heads' in text


@pytest.mark.parametrize(
    ("name", "size", "heads", "reason"),
    [
        ("beit_base_patch16_224", 224, "H=12 heads of D=64, N=197", "a bias of relative positions"),
        ("swin_tiny_patch4_window7_224", 224, "H=3, 6, 12, 24 heads of D=32, N=49", "a bias of relative"),
        ("cait_xxs24_224", 224, "H=4 heads of D=48, N=197", "its talking heads mix their scores"),
    ],
)
def test_every_family_says_why_it_does_not_run_on_triton(
    name: str, size: int, heads: str, reason: str
) -> None:
    text = info.info(name, size)
    assert heads in text and reason in text.splitlines()[-1]
    assert ("local_attention" in text) == ("swin" not in name)


@pytest.mark.filterwarnings("ignore:no measured launch configurations")
def test_what_a_backbone_runs_on_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one GPU, whose tensors are fake, and on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(launch_table, "gpu_of", lambda _: launch_table.Gpu("NVIDIA_H100", "sm_90"))

    def lines() -> list[str]:
        heads = heads_of("test_vit3", 224)  # a model is not built of fake tensors
        monkeypatch.setattr(info, "heads_of", lambda *_: heads)
        with FakeTensorMode():
            return info.info("test_vit3").splitlines()

    heads_of = info.heads_of
    served = lines()
    assert "  backend: triton" in served
    assert any("launch choices for D=32, fp16, N=197" in line for line in served)
    monkeypatch.setattr(Attention, "reasons_against_triton", ("its scores have a bias",))
    monkeypatch.setattr(launch_table, "HEAD_DIMS", (64,))
    monkeypatch.setattr(launch_table, "head_dims", lambda _: (64,))
    reasons = "head dimension D must be one of 64, got 32; its scores have a bias"
    refused = lines()
    assert f"  backend: torch, because {reasons}" in refused
    assert not any("launch choices" in line for line in refused)
    assert refused[-1].startswith("cpu: backend: torch, because tensors must be on a GPU")
    assert refused[-1].endswith(reasons)


def test_a_backbone_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"backbone_name must be a timm model .*, got 'nothing'"):
        main(["info", "--backbone_name=nothing"])
    with pytest.raises(ValueError, match=r"multiples of the patch \(16, 16\)"):
        info.info("test_vit", 100)
