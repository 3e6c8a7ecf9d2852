"""Paths are timed only if they agree; turns, memory and errors are measured correctly."""

import pytest
import torch

from bench import measure
from bench.measure import Disagreement, Path

CPU = torch.device("cpu")


def path(value: torch.Tensor, log: list[str] | None = None, name: str = "") -> Path:
    def run():
        if log is not None:
            log.append(name)
        return {"out": value}

    return Path(run)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones(3) * 1.001, "planted: out differs by 0.001"),
        (torch.ones(2), "differs by inf"),
        (torch.tensor([1.0, 1.0, torch.nan]), "differs by nan"),
        (torch.tensor([1.0, 1.0, torch.inf]), "differs by inf"),
    ],
)
def test_a_planted_wrong_output_is_refused(wrong, message):
    paths = {"right": path(torch.ones(3)), "planted": path(wrong)}
    with pytest.raises(Disagreement, match=message):
        measure.measure(paths, "fp32", CPU, seconds=0)


def test_a_missing_output_is_refused():
    with pytest.raises(Disagreement, match=r"only one side has \['more'\]"):
        measure.check_agreement(
            {"a": path(torch.ones(1)), "b": Path(lambda: {"out": torch.ones(1), "more": torch.ones(1)})},
            "fp32",
        )


def test_a_path_with_an_oracle_answers_to_it():
    own = Path(lambda: {"out": torch.zeros(2)}, oracle=lambda: {"out": torch.zeros(2)})
    measure.check_agreement({"first": path(torch.ones(3)), "own": own}, "fp32")
    wrong = own._replace(oracle=lambda: {"out": torch.ones(2)})
    with pytest.raises(Disagreement, match="own: out differs"):
        measure.check_agreement({"first": path(torch.ones(3)), "own": wrong}, "fp32")


def test_a_peer_that_differs_or_does_not_run_is_left_out_with_its_reason():
    def broken():
        raise RuntimeError("no kernel for\nthis device")

    paths = {
        "first": path(torch.ones(3)),
        "peer": path(torch.ones(3))._replace(peer=True),
        "wrong": path(torch.zeros(3))._replace(peer=True),
        "broken": Path(broken, peer=True),
    }
    figures, left_out = measure.measure(paths, "fp32", CPU, seconds=0)
    assert list(figures) == ["first", "peer"]
    assert left_out == [
        "wrong: out differs by 1, more than 0.0001",
        "broken: it does not run (RuntimeError: no kernel for)",
    ]
    with pytest.raises(RuntimeError, match="no kernel"):
        measure.measure({**paths, "broken": Path(broken)}, "fp32", CPU, seconds=0)


def test_paths_take_turns():
    log: list[str] = []
    paths = {name: path(torch.ones(1), log, name) for name in "ab"}
    times = measure.by_turns(paths, CPU, seconds=0)
    assert log == ["a", "b"] * measure.MIN_ROUNDS
    assert {name: len(rounds) for name, rounds in times.items()} == dict.fromkeys("ab", measure.MIN_ROUNDS)
    assert all(t > 0 for rounds in times.values() for t in rounds)


def test_rounds_end():
    times = measure.by_turns({"a": path(torch.ones(1))}, CPU, seconds=1e9)
    assert len(times["a"]) == measure.MAX_ROUNDS


def test_peak_counts_what_is_alive_at_once():
    mebi = 2**20

    def run():
        for _ in range(3):
            one = torch.empty(mebi, dtype=torch.uint8)
            other = torch.empty(2 * mebi, dtype=torch.uint8)
            del one, other
        return {"out": torch.empty(mebi, dtype=torch.uint8)}

    assert measure.peak_bytes(run, CPU) == 3 * mebi


def test_peak_counts_what_a_backward_pass_needs():
    x = torch.randn(256, 1024, requires_grad=True)

    def run():
        return {"gradient": torch.autograd.grad(x.exp().exp().sum(), x)[0]}

    run()
    size = x.nbytes
    assert 2 * size <= measure.peak_bytes(run, CPU) <= 4 * size + 1024


def test_relative_error():
    expected = torch.tensor([3.0, 4.0])
    assert measure.relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert measure.relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    with pytest.raises(ZeroDivisionError):
        measure.relative_error(torch.ones(2), torch.zeros(2))
