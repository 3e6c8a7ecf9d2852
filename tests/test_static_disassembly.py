"""The static meter against short listings that were counted by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from dca_triton.static import disassembly

# A loop of eleven instructions from 0x20 on, whose last two lie behind the end, and one spill before it.
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1+0x4], R5 ;
        /*0020*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0030*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0040*/                   HMMA.16816.F32 R12, R4, R7, R12 ;
        /*0050*/                   FFMA R8, R8, R20, -R21 ;
        /*0060*/                   MUFU.EX2 R8, R8 ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R3], [R30.64] ;
        /*0080*/              @P1  BRA 0x00d0 ;
        /*0090*/                   IADD3 R2, R2, 0x40, RZ ;
        /*00a0*/              @!P0 BRA 0x0020 ;
        /*00b0*/                   FADD R8, R8, R9 ;
        /*00c0*/                   EXIT ;
        /*00d0*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*00e0*/                   BRA 0x0090 ;
"""

# On Hopper: one warpgroup product with the left operand in registers, one with both in shared memory.
HOPPER = """
        /*0000*/                   HGMMA.64x64x16.F32 R24, R4, gdesc[UR8], R24 ;
        /*0010*/                   HGMMA.64x32x16.F32 R56, gdesc[UR4], R56, !UPT ;
        /*0020*/                   @!PT LDS RZ, [RZ] ;
        /*0030*/              @P0  BRA 0x0000 ;
        /*0040*/                   EXIT ;
"""


def examined(listing: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> disassembly.Code:
    answers = {"-sass": listing, "-res-usage": "REG:40 STACK:8 SHARED:0"}
    monkeypatch.setattr(disassembly, "_run", lambda tool, option, file: answers[option])
    metadata = SimpleNamespace(num_warps=4, shared=1024, target=SimpleNamespace(warp_size=32))
    compiled: Any = SimpleNamespace(metadata=metadata, asm={"cubin": b"", "ptx": ""})
    return disassembly.examine(compiled, arch)


def test_a_loop_with_a_piece_out_of_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = examined(SASS, "sm_80", monkeypatch)
    assert (code.registers, code.stack, code.spills, code.instructions) == (40, 8, 1, 15)
    (loop,) = code.loops
    assert loop.instructions == 11
    assert loop.pipes == {
        "memory": 2,
        "tensor": 2,
        "fma": 1,
        "special": 1,
        "control": 3,
        "alu": 1,
        "uniform": 1,
    }
    assert loop.flops["fp16"] == 2 * (2 * 16 * 8 * 16)
    assert loop.async_copies == 1
    assert loop.smem_bytes == 4 * 8 * 16 + 32 * 16  # four matrices of 8 rows by 16 bytes; 32 lanes by 16


def test_a_loop_of_warpgroup_products(monkeypatch: pytest.MonkeyPatch) -> None:
    (loop,) = examined(HOPPER, "sm_90", monkeypatch).loops
    assert loop.instructions == 4
    assert loop.flops["fp16"] == (2 * 64 * 64 * 16 + 2 * 64 * 32 * 16) / 4  # a warp's share of a warpgroup
    right, both = 64 * 16 * 2, 32 * 16 * 2 + 64 * 16 * 2
    assert loop.smem_bytes == (right + both) / 4  # what fills a hazard is issued and moves nothing


def test_a_listing_without_instructions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="told nothing about a cubin for sm_80"):
        examined("", "sm_80", monkeypatch)
