"""Made-up results for tests of reports and gates."""

from collections.abc import Mapping

import torch

from bench import results
from bench.measure import Measured
from bench.registry import Benchmark
from bench.shapes import ModelShape, OpShape

CPU = torch.device("cpu")
PEAKS = {"matmul fp32": 1e11, "matmul bf16": 2e11, "copy": 1e10}


def operation(N: int, milliseconds: float = 1.0) -> tuple[Benchmark, Mapping[str, Measured]]:
    """Return an operation whose eager path grows as N² in time and memory, the library's as N² and N."""
    shape = OpShape(2, N, 3, 64, 12)
    benchmark = Benchmark("rollout_row", shape, "fp32", dict, seconds=1, flops=N**2 * 10**4, moved=N * 10**4)
    square = (N / 100) ** 2
    return benchmark, {
        "matrix": Measured([4.0 * square, 5.0 * square, 4.4 * square], N * N),
        "library": Measured([milliseconds * square] * 3, 8 * N),
    }


def step(
    name: str, backbone: str, size: int, B: int, share: float
) -> tuple[Benchmark, Mapping[str, Measured]]:
    """Return a whole step in which the library takes this share of time and memory."""
    benchmark = Benchmark(name, ModelShape(backbone, size, B), "fp32", dict, seconds=1)
    return benchmark, {
        "eager maps": Measured([100.0, 110.0, 90.0], 10**8),
        "best own way": Measured([42.0, 46.2, 37.8], 5 * 10**7),
        "SA alone": Measured([10.0, 11.0, 9.0], 10**7),
        "library": Measured([100.0 * share, 110.0 * share, 90.0 * share], int(10**8 * share)),
        "library, paper layout": Measured([50.0 * share, 55.0 * share, 45.0 * share], int(10**8 * share / 2)),
    }


def document(share: float = 0.4, milliseconds: float = 1.0, device: str = "Fake_GPU") -> results.Results:
    """Return a whole results document of a device."""
    measured = [operation(N, milliseconds) for N in (128, 785, 3136)]
    for name in ("evaluation step", "train step"):
        measured.append(step(name, "deit_tiny_patch16_224", 224, 8, share))
        measured.append(step(name, "deit_small_patch16_224", 448, 2, share))
    found = results.collect(measured, PEAKS, CPU)
    found["machine_info"]["device"] = device
    return found
