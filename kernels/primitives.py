"""Building blocks of the attention kernels: locate, read and write tiles.

Names: p_ pointer, s_ stride, b_ block (tile), o_ offsets, m_ mask, i_ index. A head of an image is a matrix
of n rows of D elements: rows are s_r elements apart, the elements of a row are adjacent. DP is D rounded up
to a power of 2. Where D is not a multiple of 16, strides of heads are multiples of the largest power of 2
that divides D. Image, head and first row of a tile enter an address as 64-bit integers; offsets inside a
tile have 32 bits.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
TAIL = tl.constexpr(16)  # rows of a masked tile: the smallest sum that the tensor cores take
TINY = tl.constexpr(1.2e-38)  # the smallest normal fp32


@triton.jit
def head_ptr(p, i_b, s_b, i_h, s_h, D: tl.constexpr):
    """Pointer to the first row of head i_h of image i_b."""
    p_b = p + tl.cast(i_b, tl.int64) * s_b
    o_h = tl.cast(i_h, tl.int64) * s_h
    if D % 16 != 0:  # Triton knows no smaller divisor of s_h, and would load element by element
        o_h = tl.multiple_of(o_h, D & -D)
    return p_b + o_h


@triton.jit
def row_ptr(p, i_r, s_r):
    """Pointer to row i_r of a head."""
    return p + tl.cast(i_r, tl.int64) * s_r


@triton.jit
def exponent_factor(scale):
    """scale log2(e), the factor of scores that may be masked. 0 counts as TINY, so that -inf stays -inf."""
    c = scale * LOG2E
    return tl.where(c == 0, TINY, c)


@triton.jit
def num_sources(p_partner, i_b):
    """The partner of image i_b, and the number of images that its queries attend to: 1 or 2."""
    partner, sources = i_b, 1
    if p_partner is not None:
        partner = tl.load(p_partner + i_b).to(tl.int32)
        sources = tl.where(partner < 0, 1, 2)
    return partner, sources


@triton.jit
def own_or_partner(i_s, p, s_b, s_n, s_h, n, p2, s_b2, s_n2, s_h2, n2, i_b, partner, i_h, D: tl.constexpr):
    """Pointer, row stride and row count of keys or values: those of the image (i_s = 0) or its partner (1).

    Partners lie in p2, or in p if p2 is None.
    """
    p_s, s_s, n_s = head_ptr(p, i_b, s_b, i_h, s_h, D), s_n, n
    if i_s == 1:
        if p2 is None:
            p_s = head_ptr(p, partner, s_b, i_h, s_h, D)
        else:
            p_s, s_s, n_s = head_ptr(p2, partner, s_b2, i_h, s_h2, D), s_n2, n2
    return p_s, s_s, n_s


@triton.jit
def load_rows(p, o_r, s_r, n, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """Rows o_r of a head. Columns from D on are zero, and with MASKED so are rows from n on."""
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
    """Write the rows o_r < n and the columns below D of a tile, converted to the dtype of p."""
    o_d = tl.arange(0, DP)
    m = (o_r < n)[:, None] & (o_d < D)[None, :]
    tl.store(p + (o_r[:, None] * s_r + o_d[None, :]), b.to(p.dtype.element_ty), mask=m)
