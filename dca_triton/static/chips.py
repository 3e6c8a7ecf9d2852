"""What one multiprocessor (or compute unit) of each architecture offers, per clock, and how many programs it
holds.

From the vendors' whitepapers and programming guides, for the largest common chip of an architecture.
`mma_sync` is an assumption from published microbenchmarks: the share of the matrix peak that Hopper's
warp-wide instructions reach.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Matrix FLOP, lanes issued, and lanes of each pipe per clock and unit; shared-memory bytes per clock;
    sizes.

    registers: 32-bit registers of a unit; granule: registers a thread is given at a time; smem: bytes of a
    unit; smem_program: the most that one program may use; warps, programs: the most that a unit holds at
    once.
    """

    product: str
    units: int
    tensor: int
    tensor_tf32: int
    issue: int
    special: int
    fma: int
    imad: int
    alu: int
    smem_clock: int
    registers: int
    granule: int
    smem: int
    smem_program: int
    warps: int
    programs: int
    mma_sync: float = 1.0
    smem_reserved: int = 1024  # by the system, for each program


KIB = 1024
CHIPS = {
    "sm_80": Chip("A100", 108, 2048, 1024, 128, 16, 64, 64, 64, 128, 65536, 8, 164 * KIB, 163 * KIB, 64, 32),
    "sm_86": Chip("A10", 72, 1024, 512, 128, 16, 128, 64, 64, 128, 65536, 8, 100 * KIB, 99 * KIB, 48, 16),
    "sm_89": Chip("L40S", 142, 1024, 512, 128, 16, 128, 64, 64, 128, 65536, 8, 100 * KIB, 99 * KIB, 48, 24),
    "sm_90": Chip(
        "H100 SXM", 132, 4096, 2048, 128, 16, 128, 64, 64, 128, 65536, 8, 228 * KIB, 227 * KIB, 64, 32, 0.62
    ),
    "sm_100": Chip(
        "B200", 148, 8192, 4096, 128, 16, 128, 64, 64, 128, 65536, 8, 228 * KIB, 227 * KIB, 64, 32, 0.25
    ),
    "sm_120": Chip(
        "RTX 5090", 170, 512, 256, 128, 16, 128, 64, 64, 128, 65536, 8, 100 * KIB, 99 * KIB, 48, 24
    ),
    "gfx942": Chip(
        "MI300X",
        304,
        2048,
        1024,
        64,
        16,
        128,
        64,
        64,
        128,
        131072,
        8,
        64 * KIB,
        64 * KIB,
        32,
        32,
        smem_reserved=0,
    ),
    "gfx1100": Chip(
        "RX 7900 XTX",
        96,
        512,
        128,
        64,
        16,
        128,
        32,
        64,
        128,
        98304,
        24,
        64 * KIB,
        64 * KIB,
        32,
        32,
        smem_reserved=0,
    ),
}
