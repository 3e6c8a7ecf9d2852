"""The jobs to measure, and a table of their figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dca_triton.ops import launch_table
from dca_triton.tuning.meter.assess import Assessment
from dca_triton.tuning.meter.chips import CHIPS
from dca_triton.tuning.meter.launches import Job, uses

BASELINE = Path(__file__).parent / "baseline.json"
LENGTHS = (197, 785)
HEAD_DIM = 64
BF16 = ("sm_80", "sm_90")  # its code equals that of fp16 here, so other chips skip it


def default_jobs(archs: tuple[str, ...] = tuple(CHIPS)) -> list[Job]:
    """Return the jobs of the baseline: shipped configurations at D=64, for a ViT at 224 and 448 pixels."""
    jobs = []
    for n in LENGTHS:  # the longer length reuses the code of the shorter one from Triton's cache
        for arch in archs:
            for op, directions in launch_table.DIRECTIONS.items():
                for direction in directions:
                    key = launch_table.Key(op, direction, HEAD_DIM, "fp16")
                    config = shipped(key, n, arch)
                    jobs.append(Job(key, n, arch, config))
                    if op == "pair_attention":
                        jobs.append(Job(key, n, arch, config, pairs=False))
                    if arch in BF16 and n == LENGTHS[0]:
                        key = key._replace(dtype="bf16")
                        jobs.append(Job(key, n, arch, shipped(key, n, arch)))
    return jobs


def matrix_jobs(archs: tuple[str, ...] = tuple(CHIPS)) -> Iterator[Job]:
    """Yield every shipped configuration of every kernel, head dimension, dtype and chip.

    Those of pair attention come twice: partners in the batch, and partners in tensors of their own.
    """
    for arch in archs:
        for key, by_length in launch_table.modeled(arch).items():
            for n, config in by_length.items():
                yield from uses(Job(key, n, arch, config))


def shipped(key: launch_table.Key, n: int, arch: str) -> launch_table.Config:
    """Return the configuration that an untuned GPU of this architecture launches."""
    return launch_table.nearest(launch_table.modeled(arch)[key], n)


def name_of(job: Job) -> str:
    """Return the name of a job in tables and baselines."""
    key = job.key
    kind = " (separate)" if job.separate else "" if job.pairs else " (alone)"
    return f"{job.arch} {key.op}{kind} {key.direction} D={key.head_dim} {key.dtype} N={job.n}"


@dataclass(frozen=True)
class Figures:
    """The figures of a job, as printed and as kept in the baseline.

    registers: per thread. spills: spill instructions. shared: shared-memory bytes per program. resident:
    programs that a multiprocessor holds at once. tensor, async_copies: matrix instructions and asynchronous
    copies per iteration, the fewest of the main loops. per_score: thread-instructions per attention score in
    the most expensive main loop; floor: an estimate of the fewest possible. executed: scores computed per
    score needed. limiter: the busiest pipe; peak: the share of the matrix peak it allows. moved: bytes moved
    per byte needed. clocks: the modeled time of the launch.
    """

    registers: int
    spills: int
    shared: int
    resident: int
    tensor: int
    async_copies: int
    per_score: float
    floor: float
    executed: float
    limiter: str
    peak: float
    moved: float
    clocks: float


def figures_of(assessment: Assessment) -> Figures:
    """Return the figures of an assessed job."""
    code, work, bound = assessment.code, assessment.work, assessment.bound
    return Figures(
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        resident=assessment.resident,
        tensor=min(loop.tensor for loop in assessment.main),
        async_copies=min(loop.async_copies for loop in assessment.main),
        per_score=round(assessment.per_score, 3),
        floor=round(assessment.floor, 3),
        executed=round(work.executed / work.useful, 4),
        limiter=bound.limiter,
        peak=round(bound.peak, 3),
        moved=round(work.moved_bytes / work.least_bytes, 3),
        clocks=round(assessment.clocks, 0),
    )


def table(figures: dict[str, Figures]) -> str:
    """Return the figures as a text table, one job per line, with a legend."""
    width = max(map(len, figures), default=0)
    head = "regs spill   smem /SM mma async ins/score floor exec/need limiter peak moved   kclocks"
    lines = [f"{'':<{width}}  {head}"]
    for name, f in figures.items():
        lines.append(
            f"{name:<{width}}  {f.registers:>4} {f.spills:>5} {f.shared:>6} {f.resident:>3} {f.tensor:>3} "
            f"{f.async_copies:>5} {f.per_score:>9.2f} {f.floor:>5.2f} {f.executed:>9.3f} {f.limiter:>7} "
            f"{f.peak:>4.2f} {f.moved:>5.2f} {f.clocks / 1000:>9.1f}"
        )
    return "\n".join([*lines, "", LEGEND])


LEGEND = """\
regs: registers per thread     spill: spill instructions     smem: shared-memory bytes per program
/SM: programs per multiprocessor at once     mma, async: matrix instructions and async copies per iteration
ins/score: instructions per attention score; floor: estimated minimum     exec/need: scores computed / needed
limiter, peak: the busiest pipe and the share of matrix peak it allows     moved: bytes moved per byte needed
kclocks: estimated time of the launch, for comparison within one kernel only"""
