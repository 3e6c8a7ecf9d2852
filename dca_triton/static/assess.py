"""Launch configurations compiled, counted and modelled, many at a time in processes of their own."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from .. import tuning
from .disassembly import Code, Loop, examine
from .model import Bound, bound, floor, main_and_tail, occupancy, predict
from .problems import launch_of
from .work import Work, work_of


@dataclass(frozen=True)
class Job:
    """One kernel on one GPU: an operation's direction over n tokens in pairs or alone, launched with
    config."""

    key: tuning.Key
    n: int
    arch: str
    config: tuning.Config
    pairs: bool = True


@dataclass(frozen=True)
class Assessment:
    """What the compiled code of a job is and does. clocks: the model's time of the launch, infinite if it
    cannot run."""

    job: Job
    code: Code
    work: Work
    resident: int
    clocks: float

    @property
    def main(self) -> list[Loop]:
        """The loops over whole tiles."""
        return main_and_tail(self.code)[0]

    @property
    def per_score(self) -> float:
        """Executed thread-instructions per score of the costliest main loop."""
        lanes = self.code.warps * self.code.warp_size
        return max(loop.instructions for loop in self.main) * lanes / (self.work.block_m * self.work.block_n)

    @property
    def bound(self) -> Bound:
        """The limiting pipe of the first main loop."""
        flops = 2 * self.work.matmuls * self.work.head_dim
        return bound(self.main[0], self.code, self.work.block_m * self.work.block_n, flops)

    @property
    def floor(self) -> float:
        """The least instructions per score with these tiles."""
        return floor(self.work, self.code.warps, self.job.arch)


def assess(job: Job) -> Assessment:
    """Record the launch, compile it, count its code and predict its time."""
    key = job.key
    launch = launch_of(
        key.op, key.direction, key.head_dim, tuning.DTYPES[key.dtype], job.n, job.arch, job.config, job.pairs
    )
    code, work = examine(launch.compile(job.arch), job.arch), work_of(launch)
    return Assessment(job, code, work, occupancy(code), predict(code, work))


def assess_all(
    jobs: Iterable[Job], workers: int | None = None
) -> Iterator[tuple[Job, Assessment | Exception]]:
    """Each job with its assessment, or with what its compilation raised, as they finish; workers: the cores,
    at most 8."""
    # Spawned, not forked: a forked child could not use CUDA after its parent did.
    spawn = multiprocessing.get_context("spawn")
    count = workers or min(8, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(
        count, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures: dict[Future[Assessment], Job] = {pool.submit(assess, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield futures[future], error or future.result()
