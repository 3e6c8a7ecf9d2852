"""Count a compiled kernel: its registers and spills, and the instructions of every hot loop.

A hot loop is an innermost loop that multiplies matrices or computes exponentials. Loops are the natural loops
of the control-flow graph, so code that the assembler moved out of line counts toward the loop it belongs to.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import gcn, sass
from .control_flow import hot_loops
from .listing import Instruction

ASYNC_COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")
SPILLS = re.compile("STL|LDL|scratch_")


@dataclass
class Loop:
    """One iteration of a loop, per warp: instructions by pipe and opcode, matrix FLOP, shared-memory bytes.

    flops: matrix FLOP of one warp by precision, `fp16` (also bf16) or `tf32` (also fp32). shared_flops: the
    same of the whole program, where one thread issues for all warps (sm_100).
    """

    instructions: int
    opcodes: Counter[str]
    pipes: Counter[str]
    flops: Counter[str] = field(default_factory=Counter)
    shared_flops: Counter[str] = field(default_factory=Counter)
    smem_bytes: float = 0.0

    @property
    def tensor(self) -> int:
        """Matrix instructions."""
        return self.pipes["tensor"]

    @property
    def async_copies(self) -> int:
        """Copies from global to shared memory that bypass registers (cp.async or TMA)."""
        return sum(self.opcodes[opcode] for opcode in ASYNC_COPIES)

    @property
    def spills(self) -> int:
        """Register spill stores and loads."""
        return sum(count for opcode, count in self.opcodes.items() if SPILLS.match(opcode))


@dataclass
class Code:
    """A compiled kernel.

    registers: per thread. stack: bytes per thread. spills: register spill stores and loads. shared:
    shared-memory bytes per program. instructions: of the whole kernel. loops: the hot loops in address order.
    """

    arch: str
    warps: int
    warp_size: int
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    loops: list[Loop]


def examine(compiled: Any, arch: str) -> Code:
    """Disassemble and count a kernel that `triton.compile` made for `arch` (e.g. `sm_90`, `gfx942`)."""
    if arch.startswith("gfx"):
        listing = gcn.read(compiled.asm["amdgcn"])
    else:
        listing = sass.read(compiled.asm["cubin"], compiled.asm["ptx"], arch)
    instructions = listing.instructions
    bodies = hot_loops(listing.successors, [instruction.hot for instruction in instructions])
    return Code(
        arch=arch,
        warps=compiled.metadata.num_warps,
        warp_size=compiled.metadata.target.warp_size,
        registers=listing.registers,
        stack=listing.stack,
        spills=listing.spills,
        shared=compiled.metadata.shared,
        instructions=len(instructions),
        loops=[_count(instructions[i] for i in body) for body in bodies],
    )


def _count(body: Iterable[Instruction]) -> Loop:
    loop = Loop(0, Counter(), Counter())
    for instruction in body:
        loop.instructions += 1
        loop.opcodes[instruction.opcode] += 1
        loop.pipes[instruction.pipe] += 1
        loop.flops[instruction.precision] += instruction.flops
        loop.shared_flops[instruction.precision] += instruction.shared_flops
        loop.smem_bytes += instruction.smem_bytes
    return loop
