"""Hardware limits of each architecture, for its largest common chip.

From the vendors' whitepapers and programming guides. `mma_sync` is an assumption from published
microbenchmarks.
"""

from dataclasses import dataclass
from typing import Any

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """What one multiprocessor (or compute unit) does per clock, and what it holds at once.

    units: multiprocessors of the chip. tensor, tensor_tf32: matrix FLOP per clock in 16-bit types and in tf32
    (or fp32). issue: lanes issued per clock. special, fma, imad, alu: lanes of each pipe per clock.
    smem_clock: shared-memory bytes per clock. registers: 32-bit registers. granule: the step in which
    registers are given to a thread. smem: shared-memory bytes; smem_program: the most one program may use;
    smem_reserved: what the system takes for each program. warps, programs: the most that fit at once.
    mma_sync: share of the matrix peak that warp-wide matrix instructions reach.
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
    smem_reserved: int
    warps: int
    programs: int
    mma_sync: float


# fmt: off
ARCHITECTURES = (     "sm_80", "sm_86", "sm_89", "sm_90",    "sm_100", "sm_120",   "gfx942", "gfx1100")
PROPERTIES: dict[str, tuple[Any, ...]] = {
    "product":       ("A100",  "A10",   "L40S",  "H100 SXM", "B200",   "RTX 5090", "MI300X", "RX 7900 XTX"),
    "units":         (108,     72,      142,     132,        148,      170,        304,      96),
    "tensor":        (2048,    1024,    1024,    4096,       8192,     512,        2048,     512),
    "tensor_tf32":   (1024,    512,     512,     2048,       4096,     256,        1024,     128),
    "issue":         (128,     128,     128,     128,        128,      128,        64,       64),
    "special":       (16,      16,      16,      16,         16,       16,         16,       16),
    "fma":           (64,      128,     128,     128,        128,      128,        128,      128),
    "imad":          (64,      64,      64,      64,         64,       64,         64,       32),
    "alu":           (64,      64,      64,      64,         64,       64,         64,       64),
    "smem_clock":    (128,     128,     128,     128,        128,      128,        128,      128),
    "registers":     (65536,   65536,   65536,   65536,      65536,    65536,      131072,   98304),
    "granule":       (8,       8,       8,       8,          8,        8,          8,        24),
    "smem":          (164*KIB, 100*KIB, 100*KIB, 228*KIB,    228*KIB,  100*KIB,    64*KIB,   64*KIB),
    "smem_program":  (163*KIB, 99*KIB,  99*KIB,  227*KIB,    227*KIB,  99*KIB,     64*KIB,   64*KIB),
    "smem_reserved": (1024,    1024,    1024,    1024,       1024,     1024,       0,        0),
    "warps":         (64,      48,      48,      64,         64,       48,         32,       32),
    "programs":      (32,      16,      24,      32,         32,       24,         32,       32),
    "mma_sync":      (1.0,     1.0,     1.0,     0.62,       0.25,     1.0,        1.0,      1.0),
}
# fmt: on
CHIPS = {
    arch: Chip(**{name: values[i] for name, values in PROPERTIES.items()})
    for i, arch in enumerate(ARCHITECTURES)
}
