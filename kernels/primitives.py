"""The pieces that the attention kernels are made of: where a tile lies, how it is read and written.

Names: p_ pointer, s_ stride, b_ block (tile), o_ offsets, m_ mask, i_ index. A matrix is a head of an image,
n rows of D elements: rows s_r elements apart, elements of a row adjacent; DP is D rounded up to a power of 2.
Image, head and first row of a tile enter an address in 64 bits; only offsets inside a tile are 32 bits wide.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
TAIL = tl.constexpr(16)  # rows of a masked tile, the least that the tensor cores sum over


@triton.jit
def matrix(p, i_b, s_b, i_h, s_h):
    """Pointer to the matrix of image i_b and head i_h."""
    return p + tl.cast(i_b, tl.int64) * s_b + tl.cast(i_h, tl.int64) * s_h


@triton.jit
def row(p, i_r, s_r):
    """Pointer to row i_r of a matrix."""
    return p + tl.cast(i_r, tl.int64) * s_r


@triton.jit
def source(i_s, p, s_b, s_n, s_h, n, p2, s_b2, s_n2, s_h2, n2, i_b, partner, i_h):
    """Matrix, row stride and rows of source i_s of keys or values: 0 is the image itself, 1 its partner.

    Partners lie in p2, or among the images themselves when p2 is None.
    """
    p_s, s_s, n_s = matrix(p, i_b, s_b, i_h, s_h), s_n, n
    if i_s == 1:
        if p2 is None:
            p_s = matrix(p, partner, s_b, i_h, s_h)
        else:
            p_s, s_s, n_s = matrix(p2, partner, s_b2, i_h, s_h2), s_n2, n2
    return p_s, s_s, n_s


@triton.jit
def load_rows(p, o_r, s_r, n, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """Rows o_r of a matrix, the columns from D on zero; with MASKED the rows from n on are zero, too."""
    o_d = tl.arange(0, DP)
    # [rows, DP]
    p_b = p + (o_r[:, None] * s_r + o_d[None, :])
    if MASKED and D != DP:
        b = tl.load(p_b, mask=(o_r < n)[:, None] & (o_d < D)[None, :], other=0.0)
    elif MASKED:
        b = tl.load(p_b, mask=(o_r < n)[:, None], other=0.0)
    elif D != DP:
        b = tl.load(p_b, mask=(o_d < D)[None, :], other=0.0)
    else:
        b = tl.load(p_b)
    return b


@triton.jit
def store_rows(p, b, o_r, s_r, n, D: tl.constexpr, DP: tl.constexpr):
    """Write the rows o_r < n and the columns below D of a tile, in the type of the matrix."""
    o_d = tl.arange(0, DP)
    m = (o_r < n)[:, None] & (o_d < D)[None, :]
    tl.store(p + (o_r[:, None] * s_r + o_d[None, :]), b.to(p.dtype.element_ty), mask=m)
