"""Gates on made-up results: a planted regression fails, and so does a missed target."""

import copy
from unittest.mock import ANY

import fakes
import pytest
import torch

from bench import gate, results
from bench.registry import benchmarks


def slowed(document, fullname: str, **factors: float):
    changed = copy.deepcopy(document)
    (entry,) = (e for e in changed["benchmarks"] if e["fullname"] == fullname)
    entry["stats"]["median"] *= factors.get("median", 1.0)
    entry["extra_info"]["peak_bytes"] *= factors.get("memory", 1.0)
    return changed


LIBRARY = "rollout_row B=2 N=785 H=3 D=64 L=12 fp32: library"


def test_the_same_results_pass():
    document = fakes.document()
    assert gate.regressions(document, document) == []
    assert gate.regressions(slowed(document, LIBRARY, median=1.04, memory=1.04), document) == []


@pytest.mark.parametrize(
    ("factors", "message"), [({"median": 1.06}, "median rose"), ({"memory": 1.06}, "peak MiB rose")]
)
def test_a_planted_regression_is_found(factors, message):
    document = fakes.document()
    (found,) = gate.regressions(slowed(document, LIBRARY, **factors), document)
    assert LIBRARY in found
    assert message in found
    assert "+6.0%" in found


def test_not_a_number_is_a_regression():
    document = fakes.document()
    assert gate.regressions(slowed(document, LIBRARY, median=float("nan")), document)


def test_the_first_regression_comes_first():
    before = fakes.document()
    found = gate.regressions(fakes.document(milliseconds=2.0), before)
    assert len(found) == 3
    assert "N=128 " in found[0]


def test_what_is_no_longer_measured_is_told():
    before, after = fakes.document(), fakes.document()
    after["benchmarks"] = [e for e in after["benchmarks"] if e["fullname"] != LIBRARY]
    (found,) = gate.regressions(after, before)
    assert "in the baseline, but not measured this time" in found


def test_other_paths_may_become_slower():
    document = fakes.document()
    other = LIBRARY.replace("library", "matrix")
    assert gate.regressions(slowed(document, other, median=2.0), document) == []


def test_the_baseline_is_of_the_same_device():
    with pytest.raises(ValueError, match="baseline must be of this device, Fake_GPU, got one of Other_GPU"):
        gate.regressions(fakes.document(), fakes.document(device="Other_GPU"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"machine_info": {"device": "Fake_GPU"}}', b"\xff", None], ids=repr
)
def test_a_damaged_baseline_is_named(text, tmp_path):
    file = tmp_path / "Fake_GPU.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"baseline must be a results file, got .*Fake_GPU.json"):
        gate.read_baseline(file, "Fake_GPU")


def test_a_baseline_is_read_whole(tmp_path):
    file = tmp_path / "Fake_GPU.json"
    results.write(file, fakes.document())
    assert gate.read_baseline(file, "Fake_GPU") == fakes.document() | {"datetime": ANY}
    document = fakes.document()
    del document["benchmarks"][1]["extra_info"]["peak_bytes"]
    results.write(file, document)
    with pytest.raises(ValueError, match="must be a results file"):
        gate.read_baseline(file, "Fake_GPU")


def test_targets_are_met_and_missed():
    assert gate.missed_targets(fakes.document(share=0.4)) == []
    missed = gate.missed_targets(fakes.document(share=0.6, milliseconds=1.2))
    assert {line.split(":")[0] for line in missed} == {
        "evaluation step deit_small_patch16_224 size=448 B=2 fp32",
        "evaluation step deit_tiny_patch16_224 size=224 B=8 fp32",
        "train step deit_small_patch16_224 size=448 B=2 fp32",
        "train step deit_tiny_patch16_224 size=224 B=8 fp32",
        "rollout_row B=2 N=785 H=3 D=64 L=12 fp32",
    }
    counts = {
        "time of 'library' must be at most 1.02 of 'best own way', got 1.43": 4,
        "time of 'library, paper layout' must be at most 2.10 of 'SA alone', got 3.00": 2,
        "time of 'library' must be at most 0.50 of 'eager maps', got 0.60": 1,
        "time of 'library' must be at most 0.25 of 'matrix', got 0.27": 1,
        "peak memory of 'library' must be at most 0.50 of 'eager maps', got 0.60": 2,
    }
    assert {text: sum(text in line for line in missed) for text in counts} == counts
    assert len(missed) == sum(counts.values())


def test_memory_may_not_grow_faster_than_its_tokens():
    document = fakes.document()
    for entry in document["benchmarks"]:
        if entry["name"] == "library" and "N" in entry["params"]:
            entry["extra_info"]["peak_bytes"] *= entry["params"]["N"] ** 0.2
    assert gate.missed_targets(document) == [
        "rollout_row: the library's memory must grow as N^1.1 at most, got N^1.20",
    ]


def test_every_target_is_of_a_benchmark(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    titles = {benchmark.title for benchmark in benchmarks(fakes.CPU)}
    assert {target.group for target in (*gate.TIME, *gate.MEMORY)} <= titles
