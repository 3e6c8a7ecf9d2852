"""The static meter on short listings that were counted by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dca_triton.tuning.meter import sass
from dca_triton.tuning.meter.code import Code, examine
from dca_triton.tuning.meter.control_flow import hot_loops

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


# A switch on the warp's role: an indirect branch to a loop, to a second loop out of line, and to the end.
SWITCH = """
        /*0000*/                   LDC R6, c[0x2][R4] ;
        /*0010*/                   BRX R6 -0x20 ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R3], [R30.64] ;
        /*0030*/              @!P0 BRA 0x0020 ;
        /*0040*/                   EXIT ;
        /*0050*/                   MUFU.EX2 R8, R8 ;
        /*0060*/                   FADD R9, R9, R8 ;
        /*0070*/              @P0  BRA 0x0050 ;
        /*0080*/                   EXIT ;
"""
TARGETS = """
.L_x_3:
        /*0000*/                   LDC R6, c[0x2][R4] ;
        /*0010*/                   BRX R6 -0x20            (*"BRANCH_TARGETS .L_x_4,.L_x_5,.L_x_6,.L_x_4"*);
.L_x_4:
.L_x_0:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R3], [R30.64] ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
.L_x_6:
        /*0040*/                   EXIT ;
.L_x_5:
        /*0050*/                   MUFU.EX2 R8, R8 ;
        /*0060*/                   FADD R9, R9, R8 ;
        /*0070*/              @P0  BRA `(.L_x_5) ;
        /*0080*/                   EXIT ;
"""

# The same in PTX, for the real assembler and disassembler.
SWITCH_PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 p, .param .u32 n) {
    .reg .b32 %r<5>; .reg .b64 %rd<4>; .reg .f32 %f<2>; .reg .pred %p<3>;
    ld.param.u64 %rd1, [p]; ld.param.u32 %r3, [n];
    mov.u32 %r1, %tid.x; mov.u32 %r2, 0;
    mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2; ld.global.f32 %f1, [%rd3];
    setp.gt.u32 %p1, %r1, 3; @%p1 bra END;
    targets: .branchtargets EXP, SQUARE, STORE, END;
    brx.idx %r1, targets;
EXP:
    .pragma "nounroll";
    ex2.approx.ftz.f32 %f1, %f1; add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, %r3; @%p2 bra EXP;
    st.global.f32 [%rd3], %f1; bra.uni END;
SQUARE:
    .pragma "nounroll";
    mul.f32 %f1, %f1, %f1; add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, %r3; @%p2 bra SQUARE;
    st.global.f32 [%rd3+400], %f1; bra.uni END;
STORE:
    st.global.f32 [%rd3+800], %f1;
END:
    ret;
}
"""


def examined(listing: str, arch: str, monkeypatch: pytest.MonkeyPatch, labels: str = "") -> Code:
    answers = {"-sass": listing, "-res-usage": "REG:40 STACK:8 SHARED:0", "-c": labels}
    monkeypatch.setattr(sass, "_run", lambda tool, option, file: answers[option])
    metadata = SimpleNamespace(num_warps=4, shared=1024, target=SimpleNamespace(warp_size=32))
    compiled: Any = SimpleNamespace(metadata=metadata, asm={"cubin": (listing + labels).encode(), "ptx": ""})
    return examine(compiled, arch)


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
    with pytest.raises(RuntimeError, match="cuobjdump listed no instructions of a kernel for sm_80"):
        examined("", "sm_80", monkeypatch)


def test_loops_behind_an_indirect_branch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (loop,) = examined(SWITCH, "sm_90", monkeypatch, TARGETS).loops
    assert loop.opcodes == {"MUFU": 1, "FADD": 1, "BRA": 1}


def test_an_indirect_branch_without_targets_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="nvdisasm listed no targets of the indirect branch 'BRX R6"):
        examined(SWITCH, "sm_90", monkeypatch, TARGETS.replace("BRANCH_TARGETS", ""))


def test_a_guarded_indirect_branch_may_fall_through() -> None:
    lines = [(0x00, "@P0 BRX R6 -0x10"), (0x10, "EXIT"), (0x20, "EXIT")]
    assert sass._successors(lines, {0: [0x20]}) == [[2, 1], [], []]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_indirect_branches_of_the_real_assembler(arch: str, tmp_path: Path) -> None:
    source, cubin = tmp_path / "switch.ptx", tmp_path / "switch.cubin"
    source.write_text(SWITCH_PTX)
    sass._run("ptxas", f"-arch={arch}", str(source), "-o", str(cubin))
    listing = sass.read(cubin.read_bytes(), SWITCH_PTX, arch)
    (switch,) = (i for i, x in enumerate(listing.instructions) if x.opcode == "BRX")
    assert len(listing.successors[switch]) >= 3
    bodies = hot_loops(listing.successors, [x.hot for x in listing.instructions])
    (loop,) = ([listing.instructions[i].opcode for i in body] for body in bodies)
    assert loop.count("MUFU") == 1
    assert "BRA" in loop
    assert len(loop) <= 8
