"""Backward of pair and local attention, exact and without atomics: every tile of dQ, dK and dV has one owner.

With P = exp(scale Q K^T - lse), dP = dO V^T and delta = rowsum(dO * O):
dS = P * (dP - delta), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO.
Both kernels recompute P. attention_dq runs first and stores lse log2(e) and -delta for attention_dkdv. Adding
-delta to a product costs nothing: the product's accumulator starts from it.
"""

import triton
import triton.language as tl

from .primitives import (
    LOG2E,
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
def accumulate_dq(
    dq, q, dout, lse2, minus_delta, p_k, s_k, p_v, s_v, start, stop, c,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the contributions of the keys [start, stop) to dq / scale."""
    p_k, p_v = row_ptr(p_k, start, s_k), row_ptr(p_v, start, s_v)
    for i_n in range(start, stop, BN):
        o_n = tl.arange(0, BN)
        k = load_rows(p_k, o_n, s_k, stop - i_n, D, DP, MASKED)
        v = load_rows(p_v, o_n, s_v, stop - i_n, D, DP, MASKED)
        # [BM, BN]
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASKED:
            s = tl.where((o_n < stop - i_n)[None, :], s, float("-inf"))
        p = tl.exp2(s * c - lse2[:, None])
        dp = tl.dot(dout, v.T, input_precision=PRECISION)
        ds = p * (dp + minus_delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        p_k += BN * s_k
        p_v += BN * s_v
    return dq


@triton.jit
def attention_dq(
    p_q, p_k, p_v, p_k2, p_v2, p_partner, p_out, p_dout, p_lse, p_dq, p_lse2, p_minus_delta, scale,
    s_qb, s_qm, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_k2b, s_k2n, s_k2h, s_v2b, s_v2n, s_v2h,
    M, N, N2, H,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries; also writes its rows of lse log2(e) and of -delta."""
    tiles = tl.cdiv(M, BM)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_m = tl.program_id(0) % tiles * BM
    o_m = tl.arange(0, BM)
    m_m = o_m < M - i_m
    o_q = tl.minimum(o_m, M - i_m - 1)
    o_row = tl.cast(i_bh, tl.int64) * M + i_m
    o_out = ((tl.cast(i_b, tl.int64) * M + i_m) * H + i_h) * D
    c = exponent_factor(scale)
    # [BM, DP]
    q = load_rows(row_ptr(head_ptr(p_q, i_b, s_qb, i_h, s_qh, D), i_m, s_qm), o_q, s_qm, M, D, DP, False)
    out = load_rows(p_out + o_out, o_q, H * D, M, D, DP, False)
    dout = load_rows(p_dout + o_out, o_q, H * D, M, D, DP, False)
    # [BM]
    minus_delta = -tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    lse2 = tl.load(p_lse + o_row + o_q) * LOG2E
    tl.store(p_minus_delta + o_row + o_m, minus_delta, mask=m_m)
    tl.store(p_lse2 + o_row + o_m, lse2, mask=m_m)

    partner, sources = num_sources(p_partner, i_b)
    dq = tl.zeros([BM, DP], tl.float32)
    for i_s in range(sources):
        p_ks, s_k, n = own_or_partner(
            i_s, p_k, s_kb, s_kn, s_kh, N, p_k2, s_k2b, s_k2n, s_k2h, N2, i_b, partner, i_h, D
        )
        p_vs, s_v, n = own_or_partner(
            i_s, p_v, s_vb, s_vn, s_vh, N, p_v2, s_v2b, s_v2n, s_v2h, N2, i_b, partner, i_h, D
        )
        whole = n // BN * BN
        dq = accumulate_dq(
            dq, q, dout, lse2, minus_delta, p_ks, s_k, p_vs, s_v, whole, n, c, D, DP, TAIL, True, PRECISION
        )
        dq = accumulate_dq(
            dq, q, dout, lse2, minus_delta, p_ks, s_k, p_vs, s_v, 0, whole, c, D, DP, BN, False, PRECISION
        )
    store_rows(p_dq + o_out, dq * scale, o_m, H * D, M - i_m, D, DP)


@triton.jit
def accumulate_dkdv(
    dk, dv, k, v, p_q, s_q, p_dout, s_dout, p_lse2, p_minus_delta, start, stop, c,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the contributions of the queries [start, stop) to dk / scale and to dv."""
    for i_m in range(start, stop, BM):
        o_m = tl.arange(0, BM)
        q = load_rows(row_ptr(p_q, i_m, s_q), o_m, s_q, stop - i_m, D, DP, MASKED)
        dout = load_rows(row_ptr(p_dout, i_m, s_dout), o_m, s_dout, stop - i_m, D, DP, MASKED)
        if MASKED:  # rows past the end are zero and contribute zero
            lse2 = tl.load(p_lse2 + i_m + o_m, mask=o_m < stop - i_m, other=0.0)
            minus_delta = tl.load(p_minus_delta + i_m + o_m, mask=o_m < stop - i_m, other=0.0)
        else:
            lse2 = tl.load(p_lse2 + i_m + o_m)
            minus_delta = tl.load(p_minus_delta + i_m + o_m)
        # [BN, BM]
        s = tl.dot(k, q.T, input_precision=PRECISION)
        p = tl.exp2(s * c - lse2[None, :])
        dp = tl.dot(v, dout.T, input_precision=PRECISION)
        ds = p * (dp + minus_delta[None, :])
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def attention_dkdv(
    p_q, p_k, p_v, p_reader, p_first, p_dout, p_lse2, p_minus_delta, p_dk, p_dv, scale,
    s_qb, s_qm, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
    M, N, H,
    OWN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of image j: a loop over all queries of the images that read j.

    These images are j itself if OWN is 1, then reader[first[j]:first[j + 1]] unless p_reader is None.
    """
    tiles = tl.cdiv(N, BN)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_n = tl.program_id(0) % tiles * BN
    o_n = tl.arange(0, BN)
    o_k = i_n + tl.minimum(o_n, N - i_n - 1).to(tl.int64)
    c = scale * LOG2E
    # [BN, DP]
    k = load_rows(head_ptr(p_k, i_b, s_kb, i_h, s_kh, D), o_k, s_kn, N, D, DP, False)
    v = load_rows(head_ptr(p_v, i_b, s_vb, i_h, s_vh, D), o_k, s_vn, N, D, DP, False)
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, DP], tl.float32)

    first, last = 0, 0
    if p_reader is not None:
        first, last = tl.load(p_first + i_b).to(tl.int32), tl.load(p_first + i_b + 1).to(tl.int32)
    for i_r in range(first - OWN, last):
        i_q = i_b
        if p_reader is not None:
            i_q = tl.load(p_reader + i_r, mask=i_r >= first, other=i_b).to(tl.int32)
        p_qs = head_ptr(p_q, i_q, s_qb, i_h, s_qh, D)
        p_ds = p_dout + (tl.cast(i_q, tl.int64) * M * H + i_h) * D
        o_row = (tl.cast(i_q, tl.int64) * H + i_h) * M
        whole = M // BM * BM
        dk, dv = accumulate_dkdv(
            dk, dv, k, v, p_qs, s_qm, p_ds, H * D, p_lse2 + o_row, p_minus_delta + o_row, whole, M, c,
            D, DP, TAIL, True, PRECISION,
        )  # fmt: skip
        dk, dv = accumulate_dkdv(
            dk, dv, k, v, p_qs, s_qm, p_ds, H * D, p_lse2 + o_row, p_minus_delta + o_row, 0, whole, c,
            D, DP, BM, False, PRECISION,
        )  # fmt: skip
    o_out = ((tl.cast(i_b, tl.int64) * N + i_n) * H + i_h) * D
    store_rows(p_dk + o_out, dk * scale, o_n, H * D, N - i_n, D, DP)
    store_rows(p_dv + o_out, dv, o_n, H * D, N - i_n, D, DP)
