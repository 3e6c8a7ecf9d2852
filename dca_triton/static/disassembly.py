"""Machine code of a compiled kernel as counted loops: registers, spills, and what every hot loop executes.

A hot loop is an innermost loop that multiplies matrices or exponentiates; loops are found as the natural
loops of the control-flow graph, so pieces that the assembler moved out of line are counted with the loop they
belong to.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton.backends.nvidia

from .control_flow import hot_loops

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"

# Opcode (its part before the first dot) -> the pipe that it occupies; what is named nowhere is integer or
# logic work.
PIPES = {
    "tensor": "HMMA HGMMA UTCHMMA QGMMA QMMA IMMA",
    "fma": "FFMA FMUL FADD FFMA2 FMUL2 FADD2 HFMA2 HMUL2 HADD2 FSWZADD",
    "imad": "IMAD",
    "special": "MUFU I2F F2I F2F I2FP POPC FRND",
    "memory": "LDG STG LDS STS LDSM STSM LDGSTS LDGDEPBAR DEPBAR LDL STL LD ST LDC ULDC LDTM STTM SHFL "
    "UTMALDG UTMASTG UTMACMDFLUSH UBLKCP RED REDG ATOM ATOMG ATOMS",
    "control": "BRA BAR NOP WARPSYNC BSSY BSYNC EXIT WARPGROUP SYNCS YIELD FENCE MEMBAR ERRBAR CCTL ELECT "
    "S2R S2UR CS2R R2UR UCGABAR_ARV UCGABAR_WAIT",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}
ASYNC_COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")
GCN_PIPES = (
    ("tensor", r"v_(mfma|wmma|swmmac)"),
    ("special", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)"),
    ("memory", r"(global|buffer|flat|scratch|ds)_|s_(load|waitcnt|wait_)"),
    ("control", r"s_(c?branch|barrier|nop|delay|endpgm|sleep|setprio|clause)"),
    ("uniform", r"s_"),
    ("fma", r"v_(pk_|dual_)?(fma|fmac|mul|add|sub|max|min)\w*_f(32|16)"),
)


@dataclass
class Loop:
    """One iteration of a loop, per warp: instructions by pipe and opcode, matrix FLOP, shared-memory bytes.

    flops counts fp16/bf16 and tf32/fp32 matrix work apart, per warp, or for the whole program
    (`shared_flops`) where one thread issues for all warps, as on sm_100.
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
        """Copies from global to shared memory that do not pass registers: cp.async or TMA."""
        return sum(self.opcodes[opcode] for opcode in ASYNC_COPIES)


@dataclass
class Code:
    """A compiled kernel. shared: bytes per program; spills: register spill stores and loads; loops in address
    order."""

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
    """Disassemble and count a kernel that `triton.compile` made for arch (`sm_90`, `gfx942`)."""
    meta = compiled.metadata
    common = dict(arch=arch, warps=meta.num_warps, warp_size=meta.target.warp_size, shared=meta.shared)
    if arch.startswith("gfx"):
        return _examine_gcn(compiled.asm["amdgcn"], common)
    return _examine_sass(compiled.asm["cubin"], compiled.asm["ptx"], common)


def _examine_sass(cubin: bytes, ptx: str, common: dict[str, Any]) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = _run("cuobjdump", "-sass", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    lines = [(int(a, 16), t) for a, t in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", listing, re.M)]
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if not found or not lines:
        raise RuntimeError(f"cuobjdump told nothing about a cubin for {common['arch']}: {listing[:200]!r}")
    texts = [text for _, text in lines]
    opcodes = [_opcode(text) for text in texts]
    umma = [i for i, opcode in enumerate(opcodes) if opcode.startswith("UTCHMMA")]
    umma_flops = dict(zip(umma, _tcgen05_flops(ptx), strict=True))
    loops = []
    for body in hot_loops(_sass_successors(lines), [_is_hot(op) for op in opcodes]):
        loop = Loop(len(body), Counter(), Counter())
        for i in body:
            base = opcodes[i].split(".")[0]
            loop.opcodes[base] += 1
            loop.pipes[PIPE_OF.get(base, "uniform" if base.startswith("U") else "alu")] += 1
            kind = "tf32" if "TF32" in opcodes[i] else "fp16"
            loop.flops[kind] += _matrix_flops(opcodes[i])
            loop.shared_flops[kind] += umma_flops.get(i, 0)
            loop.smem_bytes += _smem_bytes(opcodes[i], texts[i])
        loops.append(loop)
    spills = sum(op.startswith(("STL", "LDL")) for op in opcodes)
    return Code(
        registers=int(found[1]),
        stack=int(found[2]),
        spills=spills,
        instructions=len(lines),
        loops=loops,
        **common,
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _opcode(text: str) -> str:
    return re.sub(r"^@!?\w+\s+", "", text).split()[0]


def _is_hot(opcode: str) -> bool:
    return PIPE_OF.get(opcode.split(".")[0]) == "tensor" or opcode.startswith("MUFU.EX2")


def _sass_successors(lines: list[tuple[int, str]]) -> list[list[int]]:
    index = {address: i for i, (address, _) in enumerate(lines)}
    successors = []
    for i, (_, text) in enumerate(lines):
        opcode = _opcode(text).split(".")[0]
        following = [i + 1] if i + 1 < len(lines) else []
        # A branch is conditional by a guard before it, by a predicate among its operands, or by divergence.
        guarded = text.startswith("@")
        if opcode == "BRA":
            target = re.search(r"0x([0-9a-f]+)", text.split("BRA", 1)[1])
            jump = [index[int(target[1], 16)]] if target and int(target[1], 16) in index else []
            conditional = guarded or re.search(r"BRA\S*\s+!?U?P\d|\.DIV|\.CONV", text)
            successors.append(jump + (following if conditional else []))
        elif opcode in ("EXIT", "RET", "BRX", "JMP") and not guarded:
            successors.append([])
        else:
            successors.append(following)
    return successors


def _matrix_flops(opcode: str) -> int:
    """FLOP that one warp contributes by one instruction; a warpgroup of four shares an HGMMA."""
    if group := re.match(r"HGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, group.groups())
        return 2 * m * n * k // 4
    if warp := re.match(r"HMMA\.(16816|1688|1684|884)\.", opcode):
        return 2 * {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "884": 8 * 8 * 4}[warp[1]]
    return 0


def _tcgen05_flops(ptx: str) -> list[int]:
    """FLOP of each tcgen05.mma in order, from the constant in its instruction descriptor (N/8 at bit 17, M/16
    at 24)."""
    constants = dict(re.findall(r"mov\.b32\s+(%r\d+), (-?\d+);", ptx))
    flops = []
    for kind, descriptor in re.findall(r"tcgen05\.mma\.\S*kind::(\w+) [^;]*?, (%r\d+), %p\d+;", ptx):
        bits = int(constants[descriptor])
        columns, rows = (bits >> 17 & 63) * 8, (bits >> 24 & 31) * 16
        if rows == 128 and columns % 16:  # no assembler sees it: the shape lies in a register
            raise RuntimeError(f"tcgen05.mma of {rows} rows by {columns} columns; it takes multiples of 16")
        flops.append(2 * columns * rows * {"f16": 16, "tf32": 8}[kind])
    return flops


def _smem_bytes(opcode: str, text: str) -> float:
    """Bytes that one warp moves through the shared-memory pipe by one instruction; a shuffle takes a slot of
    128."""
    base = opcode.split(".")[0]
    if text.startswith("@!PT"):
        return 0
    if base in ("LDSM", "STSM"):
        return {"4": 512, "2": 256}.get(opcode[-1], 128)
    if base in ("LDS", "STS", "LDGSTS", "ATOMS"):
        return 32 * (16 if ".128" in opcode else 8 if ".64" in opcode else 2 if "16" in opcode else 4)
    if base == "SHFL":
        return 128
    if group := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, group.groups())
        a_in_registers = re.match(r"\s*R\w+,\s*R\d", text.split(opcode, 1)[1])
        return (n * k * 2 + (0 if a_in_registers else m * k * 2)) / 4
    return 0


def _examine_gcn(assembly: str, common: dict[str, Any]) -> Code:
    labels: dict[str, int] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        line = line.split(";")[0].strip()
        if label := re.match(r"(\.?[A-Za-z_]\w*):", line):
            labels[label[1]] = len(lines)
        elif line and not line.startswith("."):
            lines.append(line)
        elif lines and line.startswith((".section", ".Lfunc_end")):
            break
    successors = []
    for i, line in enumerate(lines):
        following = [i + 1] if i + 1 < len(lines) else []
        if branch := re.match(r"s_(c?)branch\w*\s+(\S+)", line):
            successors.append([labels[branch[2]]] + (following if branch[1] else []))
        else:
            successors.append([] if line.startswith("s_endpgm") else following)
    loops = []
    for body in hot_loops(successors, [bool(re.match(r"v_(mfma|wmma|exp)", line)) for line in lines]):
        loop = Loop(len(body), Counter(), Counter())
        for i in body:
            opcode = lines[i].split()[0]
            loop.opcodes[opcode] += 1
            loop.pipes[next((p for p, pattern in GCN_PIPES if re.match(pattern, opcode)), "alu")] += 1
            if shape := re.match(r"v_(?:mfma|wmma)_f32_(\d+)x(\d+)x(\d+)", opcode):
                m, n, k = map(int, shape.groups())
                loop.flops["tf32" if opcode.endswith("f32") else "fp16"] += 2 * m * n * k
        loops.append(loop)

    def total(*names: str) -> int:
        return sum(int((re.findall(rf"\.{name}:\s+(\d+)", assembly) or ["0"])[0]) for name in names)

    return Code(
        registers=total("vgpr_count"),
        stack=total("private_segment_fixed_size"),
        spills=total("vgpr_spill_count", "sgpr_spill_count"),
        instructions=len(lines),
        loops=loops,
        **common,
    )
