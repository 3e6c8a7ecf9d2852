"""Compile, count and model launch configurations, in parallel processes."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from ...progress import progress as progress_bar
from .code import Code, Loop, examine
from .cost_model import Bound, bound, floor, main_and_tail, occupancy, predict
from .launches import Job, launch_of
from .work import Work, work_of


@dataclass(frozen=True)
class Assessment:
    """The compiled code of a job and its estimated cost.

    resident: programs that a multiprocessor holds at once. clocks: the modeled time of the launch, infinite
    if it cannot run.
    """

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
        """Executed thread-instructions per attention score in the most expensive main loop."""
        lanes = self.code.warps * self.code.warp_size
        return max(loop.instructions for loop in self.main) * lanes / (self.work.block_m * self.work.block_n)

    @property
    def bound(self) -> Bound:
        """The limiting pipe of the first main loop."""
        flops = 2 * self.work.matmuls * self.work.head_dim
        return bound(self.main[0], self.code, self.work.block_m * self.work.block_n, flops)

    @property
    def floor(self) -> float:
        """An estimate of the fewest instructions per score with these tiles."""
        return floor(self.work, self.code.warps, self.job.arch)


def assess(job: Job) -> Assessment:
    """Record the launch, compile it, count its instructions and predict its time."""
    launch = launch_of(job)
    code, work = examine(launch.compile(job.arch), job.arch), work_of(launch)
    return Assessment(job, code, work, occupancy(code), predict(code, work))


def assess_all(
    jobs: Sequence[Job], workers: int | None = None, progress: bool = False
) -> Iterator[tuple[Job, Assessment | Exception]]:
    """Yield each job with its assessment, or with the exception of its compilation, as they finish.

    workers: processes; by default one per core, at most 8. progress: show a progress bar. A caller that stops
    early cancels the jobs that wait.

    Raises BrokenExecutor if a process dies, because memory is short or a script has no
    `if __name__ == "__main__":`.
    """
    # Spawned, not forked: a forked child could not use CUDA after its parent did.
    spawn = multiprocessing.get_context("spawn")
    count = workers or min(8, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(
        count, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures: dict[Future[Assessment], Job] = {pool.submit(assess, job): job for job in jobs}
        bar = progress_bar(as_completed(futures), desc="compile", total=len(futures), disable=not progress)
        try:
            for future in bar:
                error = future.exception()
                if isinstance(error, BrokenExecutor) or not isinstance(error, Exception | None):
                    raise error
                yield futures[future], error or future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
