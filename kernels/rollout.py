"""Attention rollout, one layer at a time: r <- r / 2 + mean_h(r P_h) / 2.

`rollout_columns` does the O(N^2) work of a layer, sum_i r_i exp(scale q_i . k_j - lse_i), for one head of one
image and one tile of keys j. With the offset t_i = lse_i log2(e) - log2(r_i) this is a plain column sum of
exp2(scale log2(e) q_i . k_j - t_i), so the main loop reads neither r nor lse. A query past the end has
t_i = inf and adds 0. `rollout_mix` does the O(H N) work between two layers: the mean over heads, the
identity's half, and the next t.

A program of `rollout_columns` owns one head. Programs that own all heads would be only B * N / 128, which
leave a GPU nearly empty (B=8, N=197: 16 programs for more than a hundred multiprocessors). `rollout_mix` adds
the sums of the heads in order, so nothing is atomic.
"""

import triton
import triton.language as tl

from .primitives import LOG2E, TAIL, TINY, head_ptr, load_rows, row_ptr


@triton.jit
def column_sum_loop(
    b_sum, k_t, p_q, s_q, p_t, start, stop, factor,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add exp2(factor q . k - t) of the queries [start, stop) to b_sum, whose rows are summed at the end."""
    for i_m in range(start, stop, BM):
        o_m = tl.arange(0, BM)
        q = load_rows(row_ptr(p_q, i_m, s_q), o_m, s_q, stop - i_m, D, DP, MASKED)
        if MASKED:
            t = tl.load(p_t + i_m + o_m, mask=o_m < stop - i_m, other=float("inf"))
        else:
            t = tl.load(p_t + i_m + o_m)
        # [BM, BN]
        s = tl.dot(q, k_t, input_precision=PRECISION)
        b_sum += tl.exp2(s * factor - t[:, None])
    return b_sum


@triton.jit
def rollout_columns(
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
    p_q = head_ptr(p_q, i_b, s_qb, i_h, s_qh, D)
    p_k = row_ptr(head_ptr(p_k, i_b, s_kb, i_h, s_kh, D), i_n, s_kn)
    p_t = row_ptr(p_t, i_bh, N)
    # [DP, BN]
    k_t = tl.trans(load_rows(p_k, o_n, s_kn, N - i_n, D, DP, True))
    factor = scale * LOG2E
    whole = M // BM * BM
    b_sum = column_sum_loop(
        tl.zeros([BM, BN], tl.float32), k_t, p_q, s_qn, p_t, 0, whole, factor, D, DP, BM, False, PRECISION
    )
    b_rest = column_sum_loop(
        tl.zeros([TAIL, BN], tl.float32), k_t, p_q, s_qn, p_t, whole, M, factor, D, DP, TAIL, True, PRECISION
    )
    tl.store(row_ptr(p_sum, i_bh, N) + i_n + o_n, tl.sum(b_sum, 0) + tl.sum(b_rest, 0), mask=o_n < N - i_n)


@triton.jit
def rollout_mix(p_row, p_sum, p_lse, p_new, p_t, N, H, BN: tl.constexpr):
    """new = row / 2 + mean_h(sum) / 2 unless p_sum is None; t = lse log2(e) - log2(new) unless p_lse is None.

    Without p_sum, t follows from row itself. One tile of tokens of one image. row, new: (B, N); sum, lse, t:
    (B, H, N).
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
        b_log = tl.log2(tl.maximum(b_row, TINY))  # a weight of 0 counts as TINY
        for i_h in range(H):
            o_h = (i_b * H + i_h) * N + o_n
            b_lse = tl.load(p_lse + o_h, mask=m_n, other=0.0)
            tl.store(p_t + o_h, b_lse * LOG2E - b_log, mask=m_n)
