"""Launch configurations of the kernels: measured on a GPU, or the static model's choice for its architecture.

`configs/<device name>.json` holds what `dca-triton tune` measured on that device. `configs/<arch>.json` holds
the static model's choice for every operation, head dimension and dtype; `modeled` says how versions of Triton
differ. Choices depend on the length, never on the batch size.
"""

import functools
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import atomic_write

CONFIGS = Path(__file__).parent / "configs"
COMMAND = "dca-triton tune"
HEAD_DIMS = (16, 32, 48, 64, 72, 76, 80, 88, 96, 104, 112, 128)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DIRECTIONS = {
    "pair_attention": ("forward", "dkdv", "dq"),
    "local_attention": ("forward", "dkdv", "dq"),
    "rollout_row": ("step",),
}


@dataclass(frozen=True)
class Config:
    """A launch: block_m queries by block_n keys per tile, warps per program, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Gpu(NamedTuple):
    """A device in the tables: its sanitized name and its architecture, such as `sm_90` or `gfx942`."""

    name: str
    arch: str


class Key(NamedTuple):
    """What a choice depends on, apart from the length."""

    op: str
    direction: str
    head_dim: int
    dtype: str


Table = dict[Key, dict[int, Config]]


class AttentionKey(NamedTuple):
    """What the choice of an attention's implementation depends on; `n` is the length that was measured."""

    op: str
    training: bool
    head_dim: int
    dtype: str
    n: int


# Median milliseconds of each implementation: "triton", and those of `fused.GPU_KERNELS` that ran.
Times = dict[AttentionKey, dict[str, float]]


_forced: ContextVar[Mapping[tuple[str, str], Config] | None] = ContextVar("forced", default=None)


@contextmanager
def forced(configs: Mapping[tuple[str, str], Config]) -> Iterator[None]:
    """Context manager: launches of (op, direction) use these configurations instead of the tables.

    For benchmarking candidates. Autograd runs in this thread, because its own threads would use the tables.
    """
    token = _forced.set(configs)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _forced.reset(token)


def choose(
    op: str, direction: str, head_dim: int, dtype: torch.dtype, n: int, device: torch.device
) -> Config:
    """Return the configuration for one direction of an operation and the length nearest to n keys, by ratio.

    op and direction as in `DIRECTIONS`; head_dim as in `HEAD_DIMS`; dtype as in `DTYPES`; n >= 1. On a CPU,
    the Triton interpreter runs any configuration. Raises ValueError if no table has an entry.
    """
    configs = _forced.get()
    if configs is not None:
        return configs[op, direction]
    return _look_up(op, direction, head_dim, dtype, n, gpu_of(device))


@functools.cache
def _look_up(op: str, direction: str, head_dim: int, dtype: torch.dtype, n: int, gpu: Gpu) -> Config:
    key = Key(op, direction, head_dim, dtype_name(dtype))
    measured, modeled = tables(gpu)
    if lengths := measured.get(key):
        return nearest(lengths, n)
    if lengths := modeled.get(key):
        _say_unmeasured(gpu, head_dim, key.dtype)
        return nearest(lengths, n)
    raise ValueError(
        f"a launch must be of {DIRECTIONS} with head_dim in {HEAD_DIMS} and dtype in {list(DTYPES)}, "
        f"got {op} {direction} with head_dim {head_dim} and dtype {dtype}"
    )


def nearest(lengths: Mapping[int, Config], n: int) -> Config:
    """The configuration of the length nearest to n by ratio."""
    return lengths[min(lengths, key=lambda length: abs(math.log(length / n)))]


def dtype_name(dtype: torch.dtype) -> str:
    """The tables' name of a dtype."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """Name and architecture of a device."""
    if device.type == "cpu":
        return Gpu("interpreter", "sm_80")
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return Gpu(sanitized(torch.cuda.get_device_name(device)), arch)


def sanitized(name: str) -> str:
    """A device name as a file name: runs of anything but letters and digits become one `_`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


@functools.cache
def tables(gpu: Gpu) -> tuple[Table, Table]:
    """The device's measured table, empty if nothing was measured, and its architecture's modeled table."""
    measured = CONFIGS / f"{gpu.name}.json"
    return read(measured) if measured.exists() else {}, modeled(nearest_arch(gpu.arch))


@functools.cache
def head_dims(gpu: Gpu) -> tuple[int, ...]:
    """The head dimensions that the kernels take on a device; those that spill with every tile are absent."""
    return tuple(sorted({key.head_dim for key in tables(gpu)[1]}))


@functools.cache
def times(gpu: Gpu) -> Times:
    """The times of implementations that were measured on a device."""
    path = CONFIGS / f"{gpu.name}.json"
    return read_times(path) if path.exists() else {}


def modeled(arch: str) -> Table:
    """The static model's table of an architecture, as it is for the installed version of Triton.

    `<arch>-triton-<version>.json` replaces the choices of `<arch>.json` that a compiler of this version or a
    newer one serves badly, for example because they spill registers.
    """
    table = read(CONFIGS / f"{arch}.json")
    for path in sorted(CONFIGS.glob(f"{arch}-triton-*.json"), key=lambda path: _version(path.stem)):
        if _version(path.stem) <= _version(f"triton-{triton_version()}"):
            table |= read(path)
    return table


def _version(name: str) -> tuple[int, ...]:
    """Major and minor number at the end of a name such as `sm_90-triton-3.9`; empty if there is none."""
    found = re.search(r"triton-(\d+)\.(\d+)", name)
    return tuple(map(int, found.groups())) if found else ()


@functools.cache
def _say_unmeasured(gpu: Gpu, head_dim: int, dtype: str) -> None:
    if gpu.name == "interpreter":
        return
    arch = nearest_arch(gpu.arch)
    stand_in = "" if arch == gpu.arch else f" ({gpu.arch} is unknown; {arch} is the nearest)"
    warnings.warn(
        f"no measured launch configurations for head dimension {head_dim} in {dtype} on {gpu.name}: using "
        f"the static model's choice for {arch}{stand_in}; "
        f"`{COMMAND} --head_dims '[{head_dim}]' --dtypes '[{dtype}]'` measures them on this device",
        stacklevel=2,
    )


def nearest_arch(arch: str) -> str:
    """Return the architecture whose table to use: the vendor's newest that is not newer, else its oldest."""
    known = [p.stem for p in CONFIGS.glob("*.json") if re.fullmatch(r"(sm_|gfx)[0-9a-f]+", p.stem)]
    of_vendor = sorted((k for k in known if k[:3] == arch[:3]), key=_number)
    return max((k for k in of_vendor if _number(k) <= _number(arch)), key=_number, default=of_vendor[0])


def _number(arch: str) -> int:
    return int(arch[3:], 16 if arch.startswith("gfx") else 10)


def forget() -> None:
    """Drop the tables that were read, because a file has changed; the next choice reads the files again."""
    for remembered in (tables, head_dims, times, _look_up, _say_unmeasured):
        remembered.cache_clear()


def read(path: Path) -> Table:
    """The choices of one file."""
    table: Table = {}
    for entry in json.loads(path.read_text())["choices"]:
        key = Key(entry["op"], entry["direction"], entry["head_dim"], entry["dtype"])
        config = Config(entry["block_m"], entry["block_n"], entry["num_warps"], entry["num_stages"])
        table.setdefault(key, {})[entry["n"]] = config
    return table


def read_times(path: Path) -> Times:
    """What one file says of the times of implementations; nothing if it was only modeled."""
    entries = json.loads(path.read_text()).get("attentions", [])
    return {AttentionKey(*(entry[name] for name in AttentionKey._fields)): entry["ms"] for entry in entries}


def write(path: Path, source: str, table: Table, measured: Times | None = None) -> None:
    """Write one table. source: where its choices come from. measured: the times of implementations."""
    choices = [
        {**key._asdict(), "n": n, **config.__dict__}
        for key in sorted(table)
        for n, config in sorted(table[key].items())
    ]
    head = {"source": source, "torch": torch.__version__, "triton": triton_version()}
    lines: dict[str, list[Any] | dict[str, Any]] = {"choices": choices}
    if measured:
        lines["attentions"] = [{**key._asdict(), "ms": measured[key]} for key in sorted(measured)]
    write_lines(path, head, lines)


def write_lines(path: Path, head: Mapping[str, Any], lines: Mapping[str, list[Any] | dict[str, Any]]) -> None:
    """Write {**head, **lines} as JSON, atomically, with one line per entry of each collection in `lines`."""
    items = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    for name, entries in lines.items():
        if isinstance(entries, dict):
            opening, closing = "{}"
            encoded = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
        else:
            opening, closing = "[]"
            encoded = [f"    {json.dumps(value)}" for value in entries]
        items.append(f"  {json.dumps(name)}: {opening}\n" + ",\n".join(encoded) + f"\n  {closing}")
    with atomic_write(path, "w") as file:
        file.write("{\n" + ",\n".join(items) + "\n}\n")


def triton_version() -> str:
    """The version of Triton, or "not installed"."""
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__
