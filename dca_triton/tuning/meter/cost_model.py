"""Cost model: predict the limiting pipe of a loop, and the time of a launch, from counted machine code.

A loop cannot run faster than its busiest pipe. A launch runs in rounds of as many programs as fit on a
multiprocessor at once. A round takes the sum of their work on the busiest pipe, or the latency of one program
if that is longer. The latency constants are assumptions: the model ranks launches of one kernel, but its
times are not predictions of real ones.
"""

import math
from dataclasses import dataclass

from .chips import CHIPS, Chip
from .code import Code, Loop
from .work import Work

# All in clocks.
CLOCKS_PER_INSTRUCTION = 2.0  # of a single warp; half of the four clocks between dependent instructions
ITERATION_LATENCY = 200.0  # barriers and copies in one loop iteration
EXPOSED_LATENCY = 800.0  # global memory, in an iteration of a loop without asynchronous copies
PROGRAM_LATENCY = 1500.0  # from a program's start to its first product, plus its stores


@dataclass(frozen=True)
class Bound:
    """The busiest pipe of a loop.

    clocks: clocks per executed score, by pipe. peak: the share of the matrix peak that the limiter allows.
    """

    limiter: str
    clocks: dict[str, float]
    peak: float


def occupancy(code: Code) -> int:
    """Return how many programs fit on a multiprocessor at once; 0 if one program exceeds its limits."""
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
    """Return the clocks that each pipe needs for one iteration of a loop by all warps of a program."""
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
    """Find the pipe that limits a loop, assuming perfect overlap; `scores` are those of one iteration."""
    per_score = {pipe: time / scores for pipe, time in clocks(loop, code).items()}
    limiter = max(per_score, key=per_score.__getitem__)
    ideal = flops_per_score / CHIPS[code.arch].tensor
    return Bound(limiter, per_score, ideal / per_score[limiter])


def predict(code: Code, work: Work) -> float:
    """Predict the clocks of a whole launch; infinite if the code spills or does not fit."""
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
        # AMD loops prefetch into registers, which looks the same as loading late.
        waits = code.arch.startswith("sm_") and not loop.async_copies
        waiting = EXPOSED_LATENCY if waits else ITERATION_LATENCY
        latency += count * (loop.instructions * CLOCKS_PER_INSTRUCTION + waiting)
    on_busiest = math.ceil(work.programs / CHIPS[code.arch].units)
    rounds, rest = divmod(on_busiest, resident)
    time = rounds * max(resident * throughput, latency)
    return time + (max(rest * throughput, latency) if rest else 0.0)


def main_and_tail(code: Code) -> tuple[list[Loop], list[Loop]]:
    """Split hot loops into those over whole tiles and those over the remainder.

    A remainder loop computes at most half as many exponentials per iteration.
    """
    most = max(loop.pipes["special"] for loop in code.loops)
    main = [loop for loop in code.loops if 2 * loop.pipes["special"] > most]
    tail = [loop for loop in code.loops if 2 * loop.pipes["special"] <= most]
    return main, tail or main


def floor(work: Work, warps: int, arch: str) -> float:
    """Estimate the fewest thread-instructions per score with these tiles, without masks.

    This is counted by hand; the compiler sometimes needs fewer. It is the sum of:

    - elementwise work. forward: FFMA, maximum, exp2, sum, half a conversion; dkdv: FFMA, exp2, subtraction,
      product, two half conversions; dq: the same with one half conversion; rollout: FFMA, exp2, sum;
    - matrix instructions;
    - operand loads from shared memory, unless the matrix unit reads shared memory itself;
    - 16-byte copies;
    - about 20 loop instructions per iteration;
    - in the forward pass, rescaling and row statistics.
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


# FLOP of a matrix instruction per issuing lane; the default, 128, is a warp's 16 x 8 x 16 product.
MATRIX_FLOP = {"sm_90": 1024, "sm_100": 1024, "gfx942": 256, "gfx1100": 256}


@dataclass(frozen=True)
class _Floor:
    elementwise: float
    copied: int  # rows of D elements copied per row that the loop processes


FLOORS = {"forward": _Floor(4.5, 2), "dkdv": _Floor(5.0, 2), "dq": _Floor(4.5, 2), "columns": _Floor(3.0, 1)}
