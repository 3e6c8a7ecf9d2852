"""Read NVIDIA machine code (SASS) with the disassemblers of the Triton wheel."""

import functools
import re
import subprocess
import tempfile
from pathlib import Path

import triton.backends.nvidia

from .listing import Instruction, Listing

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"

PIPES = {  # opcodes of each pipe; all others are "uniform" if they begin with U, else "alu"
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
INDIRECT_BRANCHES = ("BRX", "BRXU", "JMX", "JMXU")

Lines = list[tuple[int, str]]  # address and text of each instruction


@functools.lru_cache(16)  # launches for other lengths have the same code; a disassembler takes 0.4 s to start
def read(cubin: bytes, ptx: str, arch: str) -> Listing:
    """Disassemble a kernel; `ptx` gives the shapes of sm_100's matrix instructions, which SASS hides."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = _run("cuobjdump", "-sass", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
        lines = [
            (int(a, 16), t) for a, t in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", listing, re.M)
        ]
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if not found or not lines:
            raise RuntimeError(f"cuobjdump listed no instructions of a kernel for {arch}: {listing[:200]!r}")
        opcodes = [_opcode(text) for _, text in lines]
        targets = {}
        if any(_base(opcode) in INDIRECT_BRANCHES for opcode in opcodes):
            targets = _indirect_targets(_run("nvdisasm", "-c", file.name))
    umma = [i for i, opcode in enumerate(opcodes) if opcode.startswith("UTCHMMA")]
    umma_flops = dict(zip(umma, _tcgen05_flops(ptx), strict=True))
    return Listing(
        instructions=[_instruction(text, umma_flops.get(i, 0)) for i, (_, text) in enumerate(lines)],
        successors=_successors(lines, targets),
        registers=int(found[1]),
        stack=int(found[2]),
        spills=sum(opcode.startswith(("STL", "LDL")) for opcode in opcodes),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _opcode(text: str) -> str:
    """Return the opcode with its modifiers, without the guard before it."""
    return re.sub(r"^@!?\w+\s+", "", text).split()[0]


def _base(opcode: str) -> str:
    """Return the opcode without its modifiers."""
    return opcode.split(".")[0]


def _instruction(text: str, shared_flops: int) -> Instruction:
    opcode = _opcode(text)
    base = _base(opcode)
    pipe = PIPE_OF.get(base, "uniform" if base.startswith("U") else "alu")
    return Instruction(
        opcode=base,
        pipe=pipe,
        hot=pipe == "tensor" or opcode.startswith("MUFU.EX2"),
        precision="tf32" if "TF32" in opcode else "fp16",
        flops=_matrix_flops(opcode),
        shared_flops=shared_flops,
        smem_bytes=_smem_bytes(opcode, text),
    )


def _successors(lines: Lines, indirect: dict[int, list[int]]) -> list[list[int]]:
    index = {address: i for i, (address, _) in enumerate(lines)}
    successors = []
    for i, (address, text) in enumerate(lines):
        base = _base(_opcode(text))
        following = [i + 1] if i + 1 < len(lines) else []
        # A guard before a branch, a predicate among its operands, or divergence makes it conditional.
        guarded = text.startswith("@")
        if base == "BRA":
            target = re.search(r"0x([0-9a-f]+)", text.split("BRA", 1)[1])
            jump = [index[int(target[1], 16)]] if target and int(target[1], 16) in index else []
            conditional = guarded or re.search(r"BRA\S*\s+!?U?P\d|\.DIV|\.CONV", text)
            successors.append(jump + (following if conditional else []))
        elif base in INDIRECT_BRANCHES:
            if address not in indirect:
                raise RuntimeError(f"nvdisasm listed no targets of the indirect branch {text!r}")
            successors.append(
                [index[target] for target in indirect[address]] + (following if guarded else [])
            )
        elif base in ("EXIT", "RET", "JMP") and not guarded:
            successors.append([])
        else:
            successors.append(following)
    return successors


def _indirect_targets(listing: str) -> dict[int, list[int]]:
    """Return the addresses each indirect branch may jump to, from the labels that nvdisasm prints."""
    labels: dict[str, int] = {}
    branches: dict[int, list[str]] = {}
    unplaced: list[str] = []  # labels before the next instruction
    for label, address, text in re.findall(r"^(\.L\w+):|^\s+/\*([0-9a-f]{4,})\*/\s+(.*)", listing, re.M):
        if label:
            unplaced.append(label)
            continue
        labels |= dict.fromkeys(unplaced, int(address, 16))
        unplaced.clear()
        if targets := re.search(r'BRANCH_TARGETS ([^"]*)"', text):
            branches[int(address, 16)] = targets[1].split(",")
    return {address: [labels[name] for name in dict.fromkeys(names)] for address, names in branches.items()}


def _matrix_flops(opcode: str) -> int:
    """Return the FLOP that one warp contributes to an instruction; four warps share an HGMMA."""
    if group := re.match(r"HGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, group.groups())
        return 2 * m * n * k // 4
    if warp := re.match(r"HMMA\.(16816|1688|1684|884)\.", opcode):
        return 2 * {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "884": 8 * 8 * 4}[warp[1]]
    return 0


def _tcgen05_flops(ptx: str) -> list[int]:
    """Return the FLOP of each tcgen05.mma in order.

    The shape is in the constant instruction descriptor: N/8 from bit 17, M/16 from bit 24.
    """
    constants = dict(re.findall(r"mov\.b32\s+(%r\d+), (-?\d+);", ptx))
    flops = []
    for kind, descriptor in re.findall(r"tcgen05\.mma\.\S*kind::(\w+) [^;]*?, (%r\d+), %p\d+;", ptx):
        bits = int(constants[descriptor])
        columns, rows = (bits >> 17 & 63) * 8, (bits >> 24 & 31) * 16
        if rows == 128 and columns % 16:  # the assembler cannot check this: the shape is in a register
            raise RuntimeError(
                f"tcgen05.mma of 128 rows by {columns} columns: the columns must be a multiple of 16"
            )
        flops.append(2 * columns * rows * {"f16": 16, "tf32": 8}[kind])
    return flops


def _smem_bytes(opcode: str, text: str) -> float:
    """Return the bytes one warp moves through the shared-memory pipe; a shuffle takes a slot of 128 bytes."""
    base = _base(opcode)
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
