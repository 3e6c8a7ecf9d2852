"""Forward of both attentions: out = softmax(scale Q [K; K']^T) [V; V'], one softmax over all keys."""

import triton
import triton.language as tl

from .primitives import (
    LN2,
    TAIL,
    exponent_factor,
    head_ptr,
    load_rows,
    num_sources,
    own_or_partner,
    row_ptr,
    store_rows,
)


@triton.jit
def softmax_loop(
    acc, row_max, row_sum, q, p_k, s_k, p_v, s_v, start, stop, c,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys [start, stop); acc, row_max, row_sum: running output, maximum and sum.

    The tensor cores compute the row sums as P times a matrix of ones: every column of row_sum holds the sum.
    """
    ones = tl.full([BN, row_sum.shape[1]], 1.0, q.dtype)
    p_k, p_v = row_ptr(p_k, start, s_k), row_ptr(p_v, start, s_v)
    for i_n in range(start, stop, BN):
        o_n = tl.arange(0, BN)
        k = load_rows(p_k, o_n, s_k, stop - i_n, D, DP, MASKED)
        # [BM, BN]
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASKED:
            s = tl.where((o_n < stop - i_n)[None, :], s, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(s, 1) * c)
        p = tl.exp2(s * c - new_max[:, None]).to(q.dtype)
        rescale = tl.exp2(row_max - new_max)[:, None]
        v = load_rows(p_v, o_n, s_v, stop - i_n, D, DP, MASKED)
        acc = tl.dot(p, v, acc * rescale, input_precision=PRECISION)
        row_sum = tl.dot(p, ones, row_sum * rescale, input_precision=PRECISION)
        row_max = new_max
        p_k += BN * s_k
        p_v += BN * s_v
    return acc, row_max, row_sum


@triton.jit
def attention_forward(
    p_q, p_k, p_v, p_k2, p_v2, p_partner, p_index, p_out, p_lse, scale,
    s_qb, s_qm, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_k2b, s_k2n, s_k2h, s_v2b, s_v2n, s_v2h,
    M, N, N2, H,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ONES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head of one image. With p_index the queries are the rows index[i_b] of q.

    Two loops run over the keys of the image and, unless partner[i_b] < 0, over those of its partner: first
    the N % BN last keys in masked tiles of TAIL, then whole tiles of BN without a mask. The masked loop is
    first because ptxas serializes the WGMMAs of a main loop if more code follows it. ONES is the smallest
    width of a matrix instruction.
    """
    tiles = tl.cdiv(M, BM)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_m = tl.program_id(0) % tiles * BM
    o_m = tl.arange(0, BM)
    o_q = i_m + tl.minimum(o_m, M - i_m - 1)
    if p_index is not None:
        o_q = tl.load(row_ptr(p_index, i_b, M) + o_q)
    # [BM, DP]
    q = load_rows(head_ptr(p_q, i_b, s_qb, i_h, s_qh, D), o_q.to(tl.int64), s_qm, M, D, DP, False)
    c = exponent_factor(scale)
    acc = tl.zeros([BM, DP], tl.float32)
    row_max = tl.full([BM], float("-inf"), tl.float32)
    row_sum = tl.zeros([BM, ONES], tl.float32)

    partner, sources = num_sources(p_partner, i_b)
    for i_s in range(sources):
        p_ks, s_k, n = own_or_partner(
            i_s, p_k, s_kb, s_kn, s_kh, N, p_k2, s_k2b, s_k2n, s_k2h, N2, i_b, partner, i_h, D
        )
        p_vs, s_v, n = own_or_partner(
            i_s, p_v, s_vb, s_vn, s_vh, N, p_v2, s_v2b, s_v2n, s_v2h, N2, i_b, partner, i_h, D
        )
        whole = n // BN * BN
        acc, row_max, row_sum = softmax_loop(
            acc, row_max, row_sum, q, p_ks, s_k, p_vs, s_v, whole, n, c, D, DP, TAIL, True, PRECISION
        )
        acc, row_max, row_sum = softmax_loop(
            acc, row_max, row_sum, q, p_ks, s_k, p_vs, s_v, 0, whole, c, D, DP, BN, False, PRECISION
        )

    # [BM]
    row_sum = tl.max(row_sum, 1)
    o_out = ((tl.cast(i_b, tl.int64) * M + i_m) * H + i_h) * D
    store_rows(p_out + o_out, acc / row_sum[:, None], o_m, H * D, M - i_m, D, DP)
    tl.store(row_ptr(p_lse, i_bh, M) + i_m + o_m, (row_max + tl.log2(row_sum)) * LN2, mask=o_m < M - i_m)
