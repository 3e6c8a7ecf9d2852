"""Read AMD assembly."""

import re

from .listing import Instruction, Listing

PIPES = (  # the first pattern that matches an opcode; all other instructions are "alu"
    ("tensor", r"v_(mfma|wmma|swmmac)"),
    ("special", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)"),
    ("memory", r"(global|buffer|flat|scratch|ds)_|s_(load|waitcnt|wait_)"),
    ("control", r"s_(c?branch|barrier|nop|delay|endpgm|sleep|setprio|clause)"),
    ("uniform", r"s_"),
    ("fma", r"v_(pk_|dual_)?(fma|fmac|mul|add|sub|max|min)\w*_f(32|16)"),
)


def read(assembly: str) -> Listing:
    """Read the assembly that Triton keeps for a kernel."""
    lines, labels = _lines(assembly)
    return Listing(
        instructions=[_instruction(line) for line in lines],
        successors=_successors(lines, labels),
        registers=_metadata(assembly, "vgpr_count"),
        stack=_metadata(assembly, "private_segment_fixed_size"),
        spills=_metadata(assembly, "vgpr_spill_count") + _metadata(assembly, "sgpr_spill_count"),
    )


def _lines(assembly: str) -> tuple[list[str], dict[str, int]]:
    """Return the lines that hold instructions, and for each label the index of the line that follows it."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        line = line.split(";")[0].strip()
        if label := re.match(r"(\.?[A-Za-z_]\w*):", line):
            labels[label[1]] = len(lines)
        elif line and not line.startswith("."):
            lines.append(line)
        elif lines and line.startswith((".section", ".Lfunc_end")):
            break
    return lines, labels


def _instruction(line: str) -> Instruction:
    opcode = line.split()[0]
    flops = 0
    if shape := re.match(r"v_(?:mfma|wmma)_f32_(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, shape.groups())
        flops = 2 * m * n * k
    return Instruction(
        opcode,
        pipe=next((pipe for pipe, pattern in PIPES if re.match(pattern, opcode)), "alu"),
        hot=bool(re.match(r"v_(mfma|wmma|exp)", opcode)),
        precision="tf32" if opcode.endswith("f32") else "fp16",
        flops=flops,
    )


def _successors(lines: list[str], labels: dict[str, int]) -> list[list[int]]:
    successors = []
    for i, line in enumerate(lines):
        following = [i + 1] if i + 1 < len(lines) else []
        if branch := re.match(r"s_(c?)branch\w*\s+(\S+)", line):
            successors.append([labels[branch[2]]] + (following if branch[1] else []))
        else:
            successors.append([] if line.startswith("s_endpgm") else following)
    return successors


def _metadata(assembly: str, name: str) -> int:
    """Return a number from the kernel's metadata, 0 if it is absent."""
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    return int(found[1]) if found else 0
