import os
import pickle
import resource
import stat
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dca_triton.checkpoint import SIGNATURE_BYTES, load_checkpoint, load_weights, save_checkpoint
from dca_triton.model import DualAttentionModel


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.fixture(scope="module")
def golden():
    return torch.load(Path(__file__).parent / "golden/fgvc_h4.pt", weights_only=True)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b or (a != a and b != b)


@pytest.mark.parametrize("form", ["dict", "bare", "file", "bare file", "safetensors", "DataParallel"])
def test_reference_weights(golden, tmp_path, form):
    model = DualAttentionModel(**golden["kwargs"], pretrained=False)
    weights = golden["state_dict"]
    extra = {
        "epoch": 3,
        "history": {"loss": [1.0]},
        "uncertainty_loss_state_dict": {"log_vars": torch.ones(3)},
    }
    file = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    source = {
        "dict": {"model_state_dict": weights, **extra},
        "DataParallel": {"model_state_dict": {f"module.{k}": v for k, v in weights.items()}, **extra},
        "bare": OrderedDict(weights),
    }.get(form, file)
    if form == "file":
        save_checkpoint(file, {"model_state_dict": weights, **extra})
    elif form == "bare file":
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        safetensors.torch.save_file(weights, file)
    rest = load_weights(model, source)
    assert_same(rest, extra if form in ("dict", "file", "DataParallel") else {})
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_keys_that_do_not_fit(tmp_path):
    model = small()
    before = copies(model)
    weights = {key: value + 1 for key, value in before.items()}
    del weights["0.bias"]
    weights["1.weight"] = torch.ones(9)
    weights["1.bias"] = 5
    weights["0.weight"] = torch.ones(4, 3, device="meta")
    weights |= {f"extra{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(ValueError) as error:
        load_weights(model, weights)
    message = str(error.value)
    assert "1 missing (0.bias)" in message
    assert "5 unexpected (extra0, extra1, extra2, ...)" in message
    assert "3 of another shape" in message and "1.weight must be (4,), got (9,)" in message
    assert "1.bias must be (4,), got a int" in message and "on meta" in message
    assert "\n" not in message
    assert_same(copies(model), before)
    save_checkpoint(tmp_path / "a.pt", {"model_state_dict": {"x": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"a\.pt does not fit.*7 missing.*1 unexpected \(x\)"):
        load_weights(model, tmp_path / "a.pt")


@pytest.mark.parametrize("weights", [None, 3, [], torch.ones(2)])
def test_model_state_dict_that_is_none(weights):
    with pytest.raises(ValueError, match=r"model_state_dict of checkpoint must be a dict of tensors, got a "):
        load_weights(small(), {"model_state_dict": weights})


def test_other_model_is_named(golden):
    model = DualAttentionModel(**golden["kwargs"] | {"num_classes": 9}, pretrained=False)
    with pytest.raises(
        ValueError, match=r"6 of another shape \(sa_head\.weight must be \(9, \d+\), got \(7,"
    ):
        load_weights(model, golden["state_dict"])


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_payload_is_refused_and_not_executed(tmp_path, how):
    file, witness = tmp_path / "bad.pt", tmp_path / "executed"
    state = {"model_state_dict": {}, "x": Payload(witness)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"bad\.pt needs posix\.mkdir, which could execute code") as error:
        load_weights(small(), file)
    assert "\n" not in str(error.value)
    assert not witness.exists()
    torch.load(file, weights_only=False) if how != "pickle" else pickle.loads(file.read_bytes())
    assert witness.exists()  # the payload was live


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_and_truncated(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    for missing in (file, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=rf"{missing.name} (does not exist|is not a file); it must be a \.pt"
        ):
            load_checkpoint(missing)
    weights = copies(small())
    safetensors.torch.save_file(weights, file) if suffix == ".safetensors" else save_checkpoint(file, weights)
    whole = file.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"a{suffix} cannot be read") as error:
            load_checkpoint(file)
        assert "\n" not in str(error.value)


def test_flipped_bit_in_a_tensor(tmp_path):
    file = tmp_path / "a.pt"
    save_checkpoint(file, {"w": torch.full((999,), 1.5)})
    data = bytearray(file.read_bytes())
    data[data.index(torch.full((9,), 1.5).numpy().tobytes()) + 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be read.*checksum"):
        load_checkpoint(file)


def test_no_dict(tmp_path):
    torch.save(torch.ones(2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt must hold a dict, got a Tensor"):
        load_checkpoint(tmp_path / "a.pt")


def test_no_advice_to_load_unsafely(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"\x80\x02}q\x00(K\x01K\x02R.")  # calls 1(2)
    with pytest.raises(
        ValueError, match=r"cannot be read \(UnpicklingError: Trying to call.*function 1\)"
    ) as error:
        load_checkpoint(tmp_path / "a.pt")
    assert "weights_only" not in str(error.value)


@settings(deadline=None, max_examples=200)
@given(noise=st.binary(max_size=300))
def test_any_bytes(noise, tmp_path_factory):
    for suffix in (".pt", ".safetensors"):
        file = tmp_path_factory.getbasetemp() / f"noise{suffix}"
        file.write_bytes(noise)
        with pytest.raises(ValueError, match="noise"):
            load_checkpoint(file)


@pytest.mark.parametrize("where", [(torch, "save"), (os, "fsync"), (os, "replace")])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file(tmp_path, monkeypatch, where, fault):
    file = tmp_path / "a.pt"
    save_checkpoint(file, {"epoch": 1})
    old = file.read_bytes()

    def fail(*args):
        if where[1] == "save":
            args[1].write(b"half")
        raise fault

    monkeypatch.setattr(*where, fail)
    with pytest.raises(type(fault)) as error:
        save_checkpoint(file, {"epoch": 2})
    assert isinstance(fault, KeyboardInterrupt) or "a.pt cannot be written" in str(error.value)
    assert file.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.pt"]


def test_on_disk_before_and_after_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)

        def record(*args, name=name, call=call):
            kind = "" if name == "replace" else stat.S_ISDIR(os.fstat(args[0]).st_mode) * " of the folder"
            done.append(name + kind)
            return call(*args)

        monkeypatch.setattr(os, name, record)
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    assert done == ["fsync", "replace", "fsync of the folder"]


@pytest.mark.parametrize("limit", [0, 100, 5_000, 400_000])
def test_full_disk(tmp_path, limit):
    """The kernel itself refuses bytes past the limit, as on a full disk."""
    file = tmp_path / "a.pt"
    save_checkpoint(file, {"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.pt cannot be written .*an older one remains whole"):
            save_checkpoint(file, {"epoch": 2, "w": torch.ones(200_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(file) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"state must hold tensors and plain Python values, got numpy"):
        save_checkpoint(tmp_path / "a.pt", {"history": [np.float64(1)]})
    assert not os.listdir(tmp_path)


def test_leftover_of_a_killed_writer(tmp_path):
    (tmp_path / ".a.pt.tmp").write_bytes(b"x" * 10_000)
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    assert load_checkpoint(tmp_path / "a.pt") == {"epoch": 1}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_signature_that_is_cut_off(tmp_path):
    """The remaining bytes are a whole archive: only the stored length of the comment reveals the cut."""
    file = tmp_path / "a.pt"
    save_checkpoint(file, {"w": torch.ones(9)})
    whole = file.read_bytes()
    for missing in range(1, SIGNATURE_BYTES + 1):
        file.write_bytes(whole[:-missing])
        with pytest.raises(ValueError, match=r"a\.pt cannot be read"):
            load_checkpoint(file)
    torch.save({"w": torch.ones(9)}, file)  # never signed
    assert load_checkpoint(file)["w"].sum() == 9
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match="cut off"):
        load_checkpoint(file)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_nested_weights_and_prefixes(key, prefix):
    source, model = small(), small()
    nested = {key: {prefix + name: value for name, value in copies(source).items()}, "epoch": 3}
    assert load_weights(model, nested) == {"epoch": 3}
    assert_same(copies(model), copies(source))
    assert load_weights(small(), {"model": nested}) == {}


def test_the_weights_come_before_their_average():
    weights, average = copies(small()), copies(small())
    model = small()
    rest = load_weights(model, {"ema_state_dict": average, "model_state_dict": weights})
    assert_same(copies(model), weights)
    assert_same(rest, {"ema_state_dict": average})


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_wrapped_models_take_weights(wrap, prefix):
    source, model = small(), small()
    load_weights(wrap(model), {prefix + name: value for name, value in copies(source).items()})
    assert_same(copies(model), copies(source))
    with pytest.raises(ValueError, match=r"1 missing \(0.bias\)"):
        load_weights(wrap(model), {name: v for name, v in copies(source).items() if name != "0.bias"})


def test_a_compiled_part_of_a_model():
    source, model = small(), small()
    model[0] = torch.compile(model[0])
    load_weights(model, copies(source))
    saved = copies(model)
    assert "0._orig_mod.weight" in saved
    other = small()
    load_weights(other, saved)
    assert_same(copies(other), copies(source))


def test_names_that_are_the_same_without_a_prefix():
    weights = copies(small())
    with pytest.raises(ValueError, match="1 named twice, with and without a prefix"):
        load_weights(small(), weights | {"_orig_mod.0.bias": weights["0.bias"]})


DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(256, [*shape, size], dtype=torch.uint8, generator=generator)
    value = raw.view(dtype).reshape(shape)  # every bit pattern: NaNs with payloads, infinities, denormals
    return value.transpose(0, -1) if value.dim() > 1 else value


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors()
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(), t, max_size=3))


@settings(deadline=None, max_examples=100)
@given(state=st.dictionaries(st.text(), trees, max_size=4))
def test_round_trip_is_bit_equal(state, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "round.pt"
    save_checkpoint(file, state)
    assert_same(load_checkpoint(file), state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_must_be_real_numbers(dtype):
    model = small()
    weights = {name: value.to(dtype) for name, value in copies(model).items()}
    before = copies(model)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_weights(model, weights)
    assert_same(copies(model), before)


def test_arguments_of_another_kind():
    with pytest.raises(ValueError) as error:
        load_weights(3, 3, transfer="yes")
    assert str(error.value) == (
        "model must be a torch.nn.Module, got 3; checkpoint must be a path or a dict of tensors, got 3; "
        "transfer must be True or False, got 'yes'"
    )
