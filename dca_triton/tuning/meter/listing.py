"""Disassembled kernels, in the same form for every vendor."""

from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction, as one warp executes it.

    opcode: without modifiers on NVIDIA. pipe: the execution unit it occupies. hot: whether it multiplies
    matrices or computes exponentials. flops: matrix FLOP of the warp; shared_flops: matrix FLOP of the whole
    program, where one thread issues for all warps (sm_100). precision: what the matrix FLOP count as, `fp16`
    (also bf16) or `tf32` (also fp32). smem_bytes: bytes moved through the shared-memory pipe.
    """

    opcode: str
    pipe: str
    hot: bool
    precision: str = "fp16"
    flops: int = 0
    shared_flops: int = 0
    smem_bytes: float = 0.0


class Listing(NamedTuple):
    """A kernel's instructions in address order, and what the compiler reports about it.

    successors: for each instruction, the indices of those that may execute next. registers: per thread.
    stack: bytes per thread. spills: register spill stores and loads.
    """

    instructions: list[Instruction]
    successors: list[list[int]]
    registers: int
    stack: int
    spills: int
