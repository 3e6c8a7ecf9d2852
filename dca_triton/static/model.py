"""A performance model of counted machine code: the pipe that limits a loop, and the time of a whole launch.

A loop cannot run faster than its busiest pipe. A launch is so many rounds of the programs that a
multiprocessor holds at once; a round takes the sum of their work on the busiest pipe, or the latency of one
program if that is longer. The constants of latency are assumptions; the model ranks launches of one kernel,
it does not promise times.
"""

import math
from dataclasses import dataclass

from .chips import CHIPS, Chip
from .disassembly import Code, Loop
from .work import Work

CLOCKS_PER_INSTRUCTION = 2.0  # of one warp alone, between two instructions: half of a dependent one's four
ITERATION_LATENCY = 200.0  # of the barriers and copies in one iteration [clocks]
EXPOSED_LATENCY = 800.0  # of global memory, in an iteration of a loop that copies nothing ahead [clocks]
PROGRAM_LATENCY = 1500.0  # from a program's start to its first product, and for its stores [clocks]


@dataclass(frozen=True)
class Bound:
    """The busiest pipe of a loop. clocks: on each pipe, per executed score; peak: useful share of the matrix
    peak."""

    limiter: str
    clocks: dict[str, float]
    peak: float


def occupancy(code: Code) -> int:
    """Programs that a multiprocessor holds at once, by registers, shared memory and warps; 0 if not even one
    fits."""
    chip = CHIPS[code.arch]
    if code.shared > chip.smem_program:
        return 0
    registers = math.ceil(max(code.registers, 1) / chip.granule) * chip.granule * code.warp_size * code.warps
    return min(
        chip.registers // registers,
        chip.smem // (code.shared + chip.smem_reserved)
        if code.shared + chip.smem_reserved
        else chip.programs,
        chip.warps // code.warps,
        chip.programs,
    )


def clocks(loop: Loop, code: Code) -> dict[str, float]:
    """Clocks that each pipe of a multiprocessor needs for one iteration of a loop by all warps of one
    program."""
    chip = CHIPS[code.arch]
    lanes = code.warps * code.warp_size
    return {
        "tensor": _tensor_clocks(loop, code, chip),
        "issue": loop.instructions * lanes / chip.issue,
        "special": loop.pipes["special"] * lanes / chip.special,
        "fma": max((loop.pipes["fma"] + loop.pipes["imad"]) / chip.fma, loop.pipes["imad"] / chip.imad)
        * lanes,
        "alu": loop.pipes["alu"] * lanes / chip.alu,
        "smem": loop.smem_bytes * code.warps / chip.smem_clock,
    }


def _tensor_clocks(loop: Loop, code: Code, chip: Chip) -> float:
    by_warps = loop.flops["fp16"] / chip.tensor + loop.flops["tf32"] / chip.tensor_tf32
    share = chip.mma_sync if loop.opcodes["HMMA"] else 1.0
    shared = loop.shared_flops["fp16"] / chip.tensor + loop.shared_flops["tf32"] / chip.tensor_tf32
    return by_warps * code.warps / share + shared


def bound(loop: Loop, code: Code, scores: float, flops_per_score: float) -> Bound:
    """Which pipe limits a loop of so many scores per iteration; overlap is taken as perfect."""
    per_score = {pipe: time / scores for pipe, time in clocks(loop, code).items()}
    limiter = max(per_score, key=per_score.__getitem__)
    ideal = flops_per_score / CHIPS[code.arch].tensor
    return Bound(limiter, per_score, ideal / per_score[limiter])


def predict(code: Code, work: Work) -> float:
    """Clocks of a whole launch, rounds and their tails included; infinite where it spills or does not fit."""
    resident = occupancy(code)
    if resident == 0 or code.spills or not code.loops:
        return math.inf
    main, tail = main_and_tail(code)
    trips = [(loop, work.main_iterations / work.programs / len(main)) for loop in main]
    trips += [(loop, work.tail_iterations / work.programs / len(tail)) for loop in tail]
    lanes = code.warps * code.warp_size
    straight = code.instructions - sum(loop.instructions for loop in code.loops)
    throughput = straight * lanes / CHIPS[code.arch].issue
    latency = PROGRAM_LATENCY + straight * CLOCKS_PER_INSTRUCTION
    for loop, count in trips:
        throughput += count * max(clocks(loop, code).values())
        # AMD's loops fetch ahead through registers, which cannot be told from fetching late.
        waits = code.arch.startswith("sm_") and not loop.async_copies
        waiting = EXPOSED_LATENCY if waits else ITERATION_LATENCY
        latency += count * (loop.instructions * CLOCKS_PER_INSTRUCTION + waiting)
    on_busiest = math.ceil(work.programs / CHIPS[code.arch].units)
    rounds, rest = divmod(on_busiest, resident)
    time = rounds * max(resident * throughput, latency)
    return time + (max(rest * throughput, latency) if rest else 0.0)


def main_and_tail(code: Code) -> tuple[list[Loop], list[Loop]]:
    """The loops over whole tiles and those over the narrow rest, told apart by the exponentials of an
    iteration."""
    most = max(loop.pipes["special"] for loop in code.loops)
    main = [loop for loop in code.loops if 2 * loop.pipes["special"] > most]
    tail = [loop for loop in code.loops if 2 * loop.pipes["special"] <= most]
    return main, tail or main


def floor(work: Work, warps: int, arch: str) -> float:
    """An estimate by hand of the least thread-instructions per score with these tiles, without masks.

    The compiler may undercut it.

    Elementwise: forward FFMA, maximum, exp2, sum and half a conversion; dkdv FFMA, exp2, subtraction, product
    and two half conversions; dq the same with one; rollout FFMA, exp2, sum. Then matrix instructions, the
    loads of operands from shared memory by a warp that owns its rows (not where the matrix unit reads them
    itself), 16-byte copies, some 20 instructions of a loop per iteration, and in the forward pass the
    rescaling and the row statistics.
    """
    kind = FLOORS[work.kind]
    scores = work.block_m * work.block_n
    owned, streamed = (work.block_n, work.block_m) if work.kind == "dkdv" else (work.block_m, work.block_n)
    matrix = 2 * work.matmuls * work.head_dim / MATRIX_FLOP.get(arch, 128)
    read_by_unit = arch in ("sm_90", "sm_100")
    operands = 0 if read_by_unit else work.matmuls * work.head_dim * 2 / 512 * 32 / (owned / warps)
    copies = kind.copied * work.head_dim * 2 / 16 / owned
    loop = 20 * warps * 32 / scores
    rows = (work.head_dim + 40) / streamed if work.kind == "forward" else 0
    return kind.elementwise + matrix + operands + copies + loop + rows


# FLOP of a matrix instruction per lane that issues it; 128 is a warp's 16 x 8 x 16 product.
MATRIX_FLOP = {"sm_90": 1024, "sm_100": 1024, "gfx942": 256, "gfx1100": 256}


@dataclass(frozen=True)
class _Floor:
    elementwise: float
    copied: int  # rows of D copied per row that the loop walks


FLOORS = {"forward": _Floor(4.5, 2), "dkdv": _Floor(5.0, 2), "dq": _Floor(4.5, 2), "columns": _Floor(3.0, 1)}
