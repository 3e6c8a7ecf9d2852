"""The static meter on kernels of known cost, and its gate on planted regressions."""

import dataclasses
import math
import os
import re
from collections import Counter
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler import make_backend

from bench.meter import __main__ as command
from bench.meter import gate, report
from dca_triton.ops import launch_table
from dca_triton.ops.triton_launch import FUSED
from dca_triton.tuning.meter.assess import Assessment, assess, assess_all
from dca_triton.tuning.meter.capture import Launch, capture, target_of
from dca_triton.tuning.meter.chips import CHIPS
from dca_triton.tuning.meter.code import Code, Loop, examine
from dca_triton.tuning.meter.control_flow import hot_loops, natural_loops
from dca_triton.tuning.meter.cost_model import bound, clocks, occupancy, predict
from dca_triton.tuning.meter.launches import Job

KEY = launch_table.Key("rollout_row", "step", 64, "fp16")
JOB = Job(KEY, 197, "sm_80", launch_table.Config(64, 128, 4, 2))


@triton.jit
def known(p_a, p_b, p_c, count, B: tl.constexpr, D: tl.constexpr):
    """Per iteration one product [B, D] by [D, B] and B * B exponentials."""
    o_b, o_d = tl.arange(0, B), tl.arange(0, D)
    b_a = tl.load(p_a + o_b[:, None] * D + o_d[None, :])
    total = tl.zeros([B, B], tl.float32)
    for i in range(count):
        b_b = tl.load(p_b + i * B * D + o_b[:, None] * D + o_d[None, :])
        total += tl.exp2(tl.dot(b_a, b_b.T))
    tl.store(p_c + o_b[:, None] * B + o_b[None, :], total)


def launches_of_known(arch: str, offset: int = 0, count: int = 7, size: int = 1 << 20) -> list[Launch]:
    def run() -> None:
        memory = torch.empty(size, device="cuda", dtype=torch.float16)
        result = torch.empty(1 << 12, device="cuda")
        known[(3, 2)](memory, memory[offset:], result, count, B=64, D=32, num_warps=4, num_stages=2, **FUSED)

    return capture(run, arch)


@pytest.mark.parametrize("arch", CHIPS)
def test_counts_of_a_known_loop(arch: str) -> None:
    (launch,) = launches_of_known(arch)
    code = examine(launch.compile(arch), arch)
    (loop,) = code.loops
    # Two waves of gfx942 compute the same rows where 64 rows meet four waves of 32-row instructions.
    times = 2 if arch == "gfx942" else 1
    by_warps = sum(loop.flops.values()) * code.warps
    assert by_warps + sum(loop.shared_flops.values()) == times * 2 * 64 * 64 * 32
    assert loop.pipes["special"] * code.warps * code.warp_size == times * 64 * 64
    assert loop.tensor > 0
    assert loop.instructions == sum(loop.pipes.values()) == sum(loop.opcodes.values())
    assert loop.instructions < code.instructions
    assert code.spills == 0
    assert (loop.async_copies > 0) == arch.startswith("sm_")


def test_launches_carry_the_specialisation_that_a_launcher_derives() -> None:
    (aligned,), (shifted,) = launches_of_known("sm_80", count=32), launches_of_known("sm_80", offset=1)
    divisible = [["tt.divisibility", 16]]
    assert aligned.attributes[(1,)] == aligned.attributes[(3,)] == divisible
    assert shifted.attributes[(1,)] == shifted.attributes[(3,)] == []
    (single,) = launches_of_known("sm_80", count=1)
    assert single.signature["count"] == "constexpr"
    assert aligned.signature["count"] == "i32"
    assert aligned.programs == 6
    assert aligned.options == {"num_warps": 4, "num_stages": 2} | FUSED


@pytest.mark.parametrize(("bytes_", "small"), [(1 << 20, True), ((1 << 31) - 2, True), (1 << 31, False)])
def test_amd_launches_are_specialized_by_the_size_of_a_storage(bytes_: int, small: bool) -> None:
    """Compared with what a launcher derives from a PyTorch tensor; AMD's buffer instructions reach 2 GiB."""
    tensor = torch.empty(bytes_ // 2, dtype=torch.float16, device="meta")[8:]
    real = make_backend(target_of("gfx942")).get_tensor_specialization(tensor, align=True)
    assert real == ("DS" if small else "D")
    (launch,) = launches_of_known("gfx942", offset=8, size=bytes_ // 2)
    pointer_range = [["tt.pointer_range", 32]] if small else []
    assert launch.attributes[(1,)] == [["tt.divisibility", 16], *pointer_range]
    loads = set(re.findall(r"(buffer|global)_load", launch.compile("gfx942").asm["amdgcn"]))
    assert loads == {"buffer" if small else "global"}


def test_an_unaligned_copy_is_seen_to_lose_its_asynchrony() -> None:
    (launch,) = launches_of_known("sm_80", offset=1)
    (loop,) = examine(launch.compile("sm_80"), "sm_80").loops
    assert loop.async_copies == 0


def test_nothing_launched_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no kernel was launched"):
        capture(lambda: torch.empty(2, device="cuda"), "sm_80")


def test_natural_loops_nested_and_out_of_line() -> None:
    # 1..4 is a loop around 2..3; 6 belongs to the inner loop although it lies behind the end
    successors = [[1], [2], [3, 6], [2, 4], [1, 5], [], [3]]
    assert sorted(map(sorted, natural_loops(successors))) == [[1, 2, 3, 4, 6], [2, 3, 6]]
    hot = [False] * 7
    assert hot_loops(successors, hot) == []
    hot[6] = True
    assert hot_loops(successors, hot) == [[2, 3, 6]]
    hot[6], hot[4] = False, True
    assert hot_loops(successors, hot) == [[1, 2, 3, 4, 6]]
    assert natural_loops([[1], [2], []]) == []


def code(registers: int = 128, shared: int = 16384, spills: int = 0, arch: str = "sm_80") -> Code:
    pipes = Counter({"tensor": 32, "special": 32, "fma": 64, "alu": 8})
    loop = Loop(200, Counter({"HMMA": 32}), pipes)
    loop.flops["fp16"] = 32 * 4096
    return Code(arch, 4, 32, registers, 0, spills, shared, 600, [loop])


def test_occupancy_by_hand() -> None:
    assert occupancy(code(registers=128)) == 65536 // (128 * 128)
    assert occupancy(code(registers=121)) == occupancy(code(registers=128))
    assert occupancy(code(registers=32, shared=40 * 1024)) == 4  # 164 KiB by 41 KiB
    assert occupancy(code(registers=32, shared=0)) == 16  # 64 warps by 4
    assert occupancy(code(shared=164 * 1024)) == 0


def test_bound_by_hand() -> None:
    compiled = code()
    assert clocks(compiled.loops[0], compiled)["special"] == 32 * 128 / 16
    limit = bound(compiled.loops[0], compiled, 4096, 128)
    assert limit.clocks["tensor"] == 4 * 32 * 4096 / 2048 / 4096
    assert limit.clocks["issue"] == 200 * 128 / 128 / 4096
    assert limit.limiter == "tensor"
    assert limit.peak == 1.0
    half = bound(code(arch="sm_90").loops[0], code(arch="sm_90"), 4096, 128)
    assert half.limiter == "special"
    assert half.peak == 0.5


@pytest.fixture(scope="module")
def assessment() -> Assessment:
    return assess(JOB)


def test_work_by_hand(assessment: Assessment) -> None:
    work = assessment.work
    matrices = 64 * 12
    assert work.programs == 2 * matrices
    assert work.useful == 197 * 197 * matrices
    assert work.executed == (3 * 64 + 16) * 2 * 128 * matrices
    assert work.least_bytes == matrices * 197 * (64 * 2 * 2 + 4 * 2)
    assert work.moved_bytes == matrices * 197 * ((64 * 2 + 4) + 2 * (64 * 2 + 4))


def test_prediction_grows_with_work_and_refuses_what_cannot_run(assessment: Assessment) -> None:
    work = assessment.work
    longer = dataclasses.replace(work, main_iterations=2 * work.main_iterations)
    time = predict(code(), work)
    assert 0 < time < predict(code(), longer) < math.inf
    assert predict(code(), work) <= predict(code(registers=250), work)
    ahead = code()
    ahead.loops[0].opcodes["LDGSTS"] = 4
    assert predict(ahead, work) < predict(code(), work)
    assert predict(code(spills=1), work) == math.inf
    assert predict(code(shared=1 << 20), work) == math.inf


def test_assessments_come_with_their_jobs_and_errors_are_not_swallowed(assessment: Assessment) -> None:
    bad = dataclasses.replace(
        JOB, config=launch_table.Config(48, 64, 4, 2)
    )  # tl.arange takes powers of two alone
    results = dict(assess_all([JOB, bad], workers=1))
    assert isinstance(results[bad], Exception)
    assert results[JOB] == assessment


def test_a_process_that_dies_is_no_fault_of_a_configuration() -> None:
    """It would read "no candidate compiles" otherwise."""

    class Deadly:
        def __reduce__(self) -> tuple:
            return os._exit, (1,)

    with pytest.raises(BrokenExecutor):
        list(assess_all([Deadly()], workers=1))  # type: ignore[list-item]


def test_the_gate_names_what_got_worse(assessment: Assessment) -> None:
    figures = report.figures_of(assessment)
    baseline = {"a": figures, "b": figures}
    assert gate.regressions(baseline, baseline) == []
    slightly = dataclasses.replace(figures, per_score=figures.per_score * 1.029, registers=200)
    assert gate.regressions({"a": slightly, "b": figures}, baseline) == []
    for field in gate.LOWER_IS_BETTER:
        worse = dataclasses.replace(figures, **{field: getattr(figures, field) * 1.04})
        (sentence,) = gate.regressions({"a": figures, "b": worse}, baseline)
        assert sentence.startswith(f"b: {field} rose")
    for planted in ({"spills": 1}, {"async_copies": 0}, {"tensor": 0}, {"clocks": math.inf}):
        assert (
            len(gate.regressions({"a": figures, "b": dataclasses.replace(figures, **planted)}, baseline)) == 1
        )
    assert "not measured this time" in gate.regressions({"a": figures}, baseline)[0]
    assert "not in the baseline" in gate.regressions(baseline | {"c": figures}, baseline)[0]


def test_baselines_are_read_as_written(assessment: Assessment, tmp_path: Path) -> None:
    figures = {"a": report.figures_of(assessment)}
    gate.write(tmp_path / "baseline.json", figures, {"triton": "0"})
    assert gate.read(tmp_path / "baseline.json") == figures
    assert "a " in report.table(figures)


def test_violations_are_all_named(assessment: Assessment) -> None:
    assert gate.violations(JOB, assessment) == []
    elsewhere = dataclasses.replace(assessment, code=dataclasses.replace(assessment.code, spills=3, stack=8))
    assert gate.violations(JOB, elsewhere) == []
    assert gate.violations(dataclasses.replace(JOB, arch="gfx942"), elsewhere) != []
    (loop, *others) = assessment.code.loops
    spilling = dataclasses.replace(loop, opcodes=loop.opcodes + Counter(STL=1, LDL=2))
    broken = dataclasses.replace(assessment.code, spills=3, shared=1 << 20, loops=[spilling, *others])
    (sentence,) = gate.violations(JOB, dataclasses.replace(assessment, code=broken, resident=0))
    for reason in ("3 spill instructions", "1048576 bytes", "no program fits"):
        assert reason in sentence
    assert "does not compile" in gate.violations(JOB, ValueError("why"))[0]


def test_the_command_fails_on_a_planted_regression(
    assessment: Assessment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {report.name_of(JOB): report.figures_of(assessment)}
    gate.write(tmp_path / "baseline.json", figures, {})
    now = dict(figures)
    monkeypatch.setattr(command, "measure", lambda jobs: now)
    monkeypatch.setattr(
        "sys.argv", ["static", "--arch", "sm_80", "--baseline", str(tmp_path / "baseline.json")]
    )
    command.main()
    assert "The figures of 1 jobs are within 3 %" in capsys.readouterr().out
    for name, figure in figures.items():
        now[name] = dataclasses.replace(figure, per_score=1.1 * figure.per_score)
    with pytest.raises(SystemExit, match=r"first of 1 regressions: .* per_score rose .*10.0%"):
        command.main()


def test_the_matrix_fails_on_a_violation_and_on_nothing(
    assessment: Assessment, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[tuple[Job, Assessment | Exception]] = [(JOB, assessment)]
    monkeypatch.setattr(command, "assess_all", lambda jobs, progress: results)
    assert command.matrix([JOB]) is None
    assert command.matrix([]) == "0 violations in 0 configurations"
    results[:] = [(JOB, RuntimeError("out of registers"))]
    assert command.matrix([JOB]) == "1 violations in 1 configurations"


def test_the_committed_baseline_is_of_the_jobs_that_are_measured() -> None:
    assert gate.read(report.BASELINE).keys() == set(map(report.name_of, report.default_jobs()))
