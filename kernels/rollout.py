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

from .primitives import LOG2E, load_rows, matrix

TAIL = tl.constexpr(16)
TINY = tl.constexpr(1.2e-38)  # the least normal fp32: a token without weight counts this much


@triton.jit
def columns(
    p_q,
    p_k,
    p_t,
    p_sum,
    s_qb,
    s_qn,
    s_qh,
    s_kb,
    s_kn,
    s_kh,
    M,
    N,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """sum[b,h,j] = sum_{i<M} exp2(scale log2(e) q[b,i,h] . k[b,j,h] - t[b,h,i]); grid (key tiles, H, B)."""
    i_h, i_b = tl.program_id(1), tl.program_id(2)
    p_q = matrix(p_q, i_b, s_qb, i_h, s_qh)
    p_k = matrix(p_k, i_b, s_kb, i_h, s_kh)
    row = (i_b.to(tl.int64) * tl.num_programs(1) + i_h) * N
    p_t += row
    p_sum += row
    o_k = tl.program_id(0) * BN + tl.arange(0, BN)
    # [DP, BN]
    b_k = tl.trans(load_rows(p_k, o_k, s_kn, N, D, DP, True))
    factor = scale * LOG2E

    # [BM, BN]; summed over the queries once, after the loop
    b_sum = tl.zeros([BM, BN], tl.float32)
    full = M // BM * BM
    for start in range(0, full, BM):
        o_q = start + tl.arange(0, BM)
        b_q = load_rows(p_q, o_q, s_qn, M, D, DP, False)
        b_t = tl.load(p_t + o_q)
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
        b_sum += tl.exp2(b_s * factor - b_t[:, None])

    # [TAIL, BN]
    b_tail = tl.zeros([TAIL, BN], tl.float32)
    for start in range(full, M, TAIL):
        o_q = start + tl.arange(0, TAIL)
        b_q = load_rows(p_q, o_q, s_qn, M, D, DP, True)
        b_t = tl.load(p_t + o_q, mask=o_q < M, other=float("inf"))
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
        b_tail += tl.exp2(b_s * factor - b_t[:, None])

    tl.store(p_sum + o_k, tl.sum(b_sum, 0) + tl.sum(b_tail, 0), mask=o_k < N)


@triton.jit
def mix(p_row, p_sum, p_lse, p_new, p_t, N, H, BN: tl.constexpr):
    """new = row / 2 + mean_h(sum) / 2, or row where p_sum is None; t = lse log2(e) - log2(new) unless p_lse
    is None.

    Grid (token tiles, B). row, new (B,N); sum, lse, t (B,H,N).
    """
    i_b = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
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
