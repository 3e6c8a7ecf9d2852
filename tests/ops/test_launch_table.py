"""Launch tables, their lookup, and what `info` prints about them."""

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tuning_cases import KEY, A, B, C, on

from dca_triton.cli import info
from dca_triton.ops import launch_table
from dca_triton.ops.launch_table import Config, Gpu, Key
from dca_triton.tuning.meter.chips import CHIPS

CPU = torch.device("cpu")
SPILL = {"gfx1100": (72, 76, 88)}  # the backward pass of these heads, with every tile


@pytest.mark.parametrize("arch", CHIPS)
def test_every_chip_has_a_choice_for_everything(arch: str) -> None:
    table = launch_table.read(launch_table.CONFIGS / f"{arch}.json")
    directions = [(op, d) for op, all_directions in launch_table.DIRECTIONS.items() for d in all_directions]
    head_dims = [d for d in launch_table.HEAD_DIMS if d not in SPILL.get(arch, ())]
    assert launch_table.head_dims(Gpu("X", arch)) == tuple(head_dims)
    expected = itertools.product(directions, head_dims, launch_table.DTYPES)
    assert set(table) == {Key(*direction, *rest) for direction, *rest in expected}
    for config in itertools.chain.from_iterable(lengths.values() for lengths in table.values()):
        for extent in (config.block_m, config.block_n):
            assert extent in (16, 32, 64, 128, 256)
        assert config.num_warps in (1, 2, 4, 8, 16)
        assert 1 <= config.num_stages <= 5


def test_choices_of_a_version_replace_choices_of_the_architecture() -> None:
    replacing = list(launch_table.CONFIGS.glob("*-triton-*.json"))
    assert replacing
    for path in replacing:
        table = launch_table.read(launch_table.CONFIGS / f"{path.stem.split('-')[0]}.json")
        for key, by_length in launch_table.read(path).items():
            assert by_length.keys() == table[key].keys()
            assert by_length != table[key]


def test_tables_say_where_they_come_from() -> None:
    for path in launch_table.CONFIGS.glob("*.json"):
        assert '"source": "static model"' in path.read_text() or '"source": "measured on ' in path.read_text()


def test_the_nearest_length_by_ratio_decides() -> None:
    lengths = {100: A, 400: B}
    assert launch_table.nearest(lengths, 1) == launch_table.nearest(lengths, 199) == A
    assert launch_table.nearest(lengths, 201) == launch_table.nearest(lengths, 10**6) == B


def test_the_devices_own_table_comes_first_and_the_archs_fills_in(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KEY._replace(head_dim=32)
    launch_table.write(configs / "sm_90.json", "static model", {KEY: {197: B}, other: {197: B}})
    launch_table.write(configs / "NVIDIA_H100.json", "measured on NVIDIA_H100", {KEY: {197: C, 785: A}})
    device = on(monkeypatch, "NVIDIA_H100", "sm_90")
    assert launch_table.choose("rollout_row", "step", 64, torch.float16, 200, device) == C
    assert launch_table.choose("rollout_row", "step", 64, torch.float16, 700, device) == A
    with pytest.warns(UserWarning, match=r"dimension 32 in fp16 on NVIDIA_H100: .*--head_dims '\[32\]'"):
        assert launch_table.choose("rollout_row", "step", 32, torch.float16, 700, device) == B


@pytest.mark.parametrize(("triton", "config"), [("3.8.0", A), ("3.9.0", B), ("3.10.1+git", C), ("none", A)])
def test_a_newer_triton_has_choices_of_its_own(
    configs: Path, monkeypatch: pytest.MonkeyPatch, triton: str, config: Config
) -> None:
    other = KEY._replace(head_dim=32)
    launch_table.write(configs / "sm_90.json", "static model", {KEY: {197: A}, other: {197: A}})
    launch_table.write(configs / "sm_90-triton-3.9.json", "static model", {KEY: {197: B}})
    launch_table.write(configs / "sm_90-triton-3.10.json", "static model", {KEY: {197: C}})
    monkeypatch.setattr(launch_table, "triton_version", lambda: triton)
    assert launch_table.modeled("sm_90") == {KEY: {197: config}, other: {197: A}}
    assert launch_table.nearest_arch("sm_90") == "sm_90"


def test_an_unmeasured_device_is_told_once_how_to_tune(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on(monkeypatch, "NVIDIA_H100", "sm_90")
    advice = r"`dca-triton tune --head_dims '\[64\]' --dtypes '\[fp16\]'` measures them"
    with pytest.warns(UserWarning, match=advice) as caught:
        for n in (197, 785):
            assert launch_table.choose("rollout_row", "step", 64, torch.float16, n, device) == B
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [
        ("sm_86", "sm_80"),
        ("sm_103", "sm_90"),
        ("sm_75", "sm_80"),
        ("gfx90a", "gfx942"),
        ("gfx1201", "gfx942"),
    ],
)
def test_an_unknown_architecture_takes_the_nearest_of_its_vendor_and_says_so(
    configs: Path, monkeypatch: pytest.MonkeyPatch, arch: str, nearest: str
) -> None:
    device = on(monkeypatch, "New", arch)
    with pytest.warns(UserWarning, match=f"{arch} is unknown; {nearest} is the nearest"):
        config = launch_table.choose("rollout_row", "step", 64, torch.float16, 197, device)
    assert config == {"sm_80": A, "sm_90": B, "gfx942": C}[nearest]


def test_the_interpreter_takes_a_choice_without_a_warning(configs: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launch_table.choose("rollout_row", "step", 64, torch.float16, 197, CPU) == A


def test_what_no_table_holds_is_an_error_that_names_what_is_allowed() -> None:
    for op, head_dim, dtype in [("nothing", 64, torch.float16), ("rollout_row", 7, torch.float64)]:
        with pytest.raises(ValueError, match=r"a launch must be of .*rollout_row.*128.*bf16.*, got "):
            launch_table.choose(op, "step", head_dim, dtype, 197, CPU)


def test_devices_are_named_and_their_architecture_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_table.gpu_of.cache_clear()
    hopper = SimpleNamespace(major=9, minor=0, gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: hopper)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3 (PCIe)")
    assert launch_table.gpu_of(torch.device("cuda", 0)) == Gpu("NVIDIA_H100_80GB_HBM3_PCIe", "sm_90")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert launch_table.gpu_of(torch.device("cuda", 1)).arch == "gfx942"
    launch_table.gpu_of.cache_clear()


def test_forced_configurations_hold_within_and_not_after(configs: Path) -> None:
    choose = ("rollout_row", "step", 64, torch.float16, 197, CPU)
    with pytest.raises(KeyError), launch_table.forced({("rollout_row", "step"): C}):
        assert launch_table.choose(*choose) == C
        launch_table.choose("pair_attention", "forward", 64, torch.float16, 197, CPU)
    assert launch_table.choose(*choose) == A


def test_tables_are_read_as_written_and_never_half(tmp_path: Path) -> None:
    table = {KEY: {197: A, 785: B}, KEY._replace(dtype="bf16"): {64: C}}
    launch_table.write(tmp_path / "x.json", "measured on X", table)
    assert launch_table.read(tmp_path / "x.json") == table
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_info_tells_which_launches_were_measured(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(monkeypatch, "NVIDIA_H100", "sm_90")
    monkeypatch.setattr(launch_table, "DIRECTIONS", {"rollout_row": ("step",)})
    launch_table.write(configs / "NVIDIA_H100.json", "measured on NVIDIA_H100", {KEY: {197: C}})
    launch_table.write(configs / "sm_90.json", "static model", {KEY._replace(dtype="bf16"): {197: B}})
    for dtype, origin in ((torch.float16, "measured on this GPU"), (torch.bfloat16, "the static model's")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, line, *rest = info._choices(launch_table.gpu_of(device), device, 64, dtype, 197)
        assert line.endswith(origin)
        assert rest == ["implementation that backend='auto' takes:", "  triton; others not measured"]
    times = {
        launch_table.AttentionKey("pair_attention", True, 64, "fp16", 197): {"triton": 1.0, "flash": 0.5}
    }
    launch_table.write(configs / "NVIDIA_H100.json", "measured on NVIDIA_H100", {KEY: {197: C}}, times)
    launch_table.forget()
    *_, line = info._choices(launch_table.gpu_of(device), device, 64, torch.float16, 200)
    assert line == "  pair_attention with gradient, N=197: flash, which takes 0.50 of the kernels' time"


def test_info_tells_versions_and_every_reason() -> None:
    text = info.info()
    for part in (torch.__version__, launch_table.triton_version(), "cpu: backend: torch"):
        assert part in text
