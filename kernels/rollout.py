"""Attention rollout: r[j] <- r[j] / 2 + mean_h sum_i r[i] exp(scale q_ih . k_jh - lse_ih) / 2, one block at a
time.

`columns` does the N^2 work of a block for one head, one image and one tile of keys: with the offset t_i =
lse_i log2(e) - log2(r_i) it is a plain column sum of exp2(scale log2(e) q_i . k_j - t_i), so neither r nor
lse is met again in the main loop, and a query past the end is one with t_i = inf, which adds 0. `mix` does
the O(H N) work between two blocks: the mean over heads, the identity's half, the next t.

A program of `columns` owns one head and not all of them because B * N / 128 programs leave a GPU empty (B=8,
N=197: 16 programs for more than a hundred multiprocessors); the heads' sums are added in order by `mix`, so
nothing is atomic.
"""

import triton
import triton.language as tl

from .primitives import LOG2E, TAIL, load_rows, matrix, row

TINY = tl.constexpr(1.2e-38)  # the least normal fp32: a token without weight counts this much


@triton.jit
def add_queries(
    b_sum, k_t, p_q, s_q, p_t, start, stop, factor,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add exp2(factor q . k - t) of the queries [start, stop) to b_sum, whose rows are summed in the end."""
    for i_m in range(start, stop, BM):
        o_m = tl.arange(0, BM)
        q = load_rows(row(p_q, i_m, s_q), o_m, s_q, stop - i_m, D, DP, MASKED)
        if MASKED:
            t = tl.load(p_t + i_m + o_m, mask=o_m < stop - i_m, other=float("inf"))
        else:
            t = tl.load(p_t + i_m + o_m)
        # [BM, BN]
        s = tl.dot(q, k_t, input_precision=PRECISION)
        b_sum += tl.exp2(s * factor - t[:, None])
    return b_sum


@triton.jit
def columns(
    p_q, p_k, p_t, p_sum, s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, M, N, H, scale,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum[b,h,j] = sum_{i<M} exp2(scale log2(e) q[b,i,h] . k[b,j,h] - t[b,h,i]) for one tile of keys j."""
    tiles = tl.cdiv(N, BN)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_n = tl.program_id(0) % tiles * BN
    o_n = tl.arange(0, BN)
    p_q = matrix(p_q, i_b, s_qb, i_h, s_qh)
    p_k = row(matrix(p_k, i_b, s_kb, i_h, s_kh), i_n, s_kn)
    p_t = row(p_t, i_bh, N)
    # [DP, BN]
    k_t = tl.trans(load_rows(p_k, o_n, s_kn, N - i_n, D, DP, True))
    factor = scale * LOG2E
    whole = M // BM * BM
    b_sum = add_queries(
        tl.zeros([BM, BN], tl.float32), k_t, p_q, s_qn, p_t, 0, whole, factor, D, DP, BM, False, PRECISION
    )
    b_rest = add_queries(
        tl.zeros([TAIL, BN], tl.float32), k_t, p_q, s_qn, p_t, whole, M, factor, D, DP, TAIL, True, PRECISION
    )
    tl.store(row(p_sum, i_bh, N) + i_n + o_n, tl.sum(b_sum, 0) + tl.sum(b_rest, 0), mask=o_n < N - i_n)


@triton.jit
def mix(p_row, p_sum, p_lse, p_new, p_t, N, H, BN: tl.constexpr):
    """new = row / 2 + mean_h(sum) / 2, or row where p_sum is None; t = lse log2(e) - log2(new) unless p_lse
    is None.

    One tile of tokens of an image. row, new (B,N); sum, lse, t (B,H,N).
    """
    tiles = tl.cdiv(N, BN)
    i_b = tl.cast(tl.program_id(0) // tiles, tl.int64)
    o_n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    m_n = o_n < N
    # [BN]
    b_row = tl.load(p_row + i_b * N + o_n, mask=m_n, other=0.0)
    if p_sum is not None:
        b_sum = tl.zeros([BN], tl.float32)
        for i_h in range(H):
            b_sum += tl.load(p_sum + (i_b * H + i_h) * N + o_n, mask=m_n, other=0.0)
        b_row = 0.5 * b_row + 0.5 / H * b_sum
        tl.store(p_new + i_b * N + o_n, b_row, mask=m_n)
    if p_lse is not None:
        b_log = tl.log2(tl.maximum(b_row, TINY))
        for i_h in range(H):
            o_h = (i_b * H + i_h) * N + o_n
            b_lse = tl.load(p_lse + o_h, mask=m_n, other=0.0)
            tl.store(p_t + o_h, b_lse * LOG2E - b_log, mask=m_n)
