"""Count the work of a recorded launch: loop iterations, scores, and bytes."""

from dataclasses import dataclass

from ...kernels.rollout import TAIL
from .capture import Launch, Pointer

# Kernel -> its kind, and how many products of depth D each attention score takes.
KINDS = {
    "attention_forward": ("forward", 2),
    "attention_dq": ("dq", 3),
    "attention_dkdv": ("dkdv", 4),
    "rollout_columns": ("columns", 1),
}


@dataclass(frozen=True)
class Work:
    """Totals over all programs of a launch; `matmuls` and `head_dim` are per score.

    useful: scores that the operation needs. least_bytes: reading every input once and writing every output
    once. moved_bytes: global-memory traffic without caches.
    """

    kind: str
    programs: int
    block_m: int
    block_n: int
    tail: int
    useful: int
    main_iterations: int
    tail_iterations: int
    matmuls: int
    head_dim: int
    least_bytes: int
    moved_bytes: int

    @property
    def step(self) -> int:
        """Rows that one iteration of a main loop processes."""
        return self.block_n if self.kind in ("forward", "dq") else self.block_m

    @property
    def executed(self) -> int:
        """Scores that the launch computes, including those past the ends."""
        owned = self.block_m * self.block_n // self.step
        return owned * (self.main_iterations * self.step + self.tail_iterations * self.tail)


def work_of(launch: Launch) -> Work:
    """Count the work of a launch of a kernel in `KINDS`."""
    a = launch.arguments
    kind, matmuls = KINDS[launch.name]
    owner, walked = (a["BM"], "N") if kind in ("forward", "dq") else (a["BN"], "M")
    step = a["BN"] if kind in ("forward", "dq") else a["BM"]
    rows = a["M"] if kind in ("forward", "dq") else a["N"]
    tiles = -(-rows // owner)
    matrices = launch.programs // tiles  # images times heads
    walks = [(a[walked], matrices)]  # (rows, matrices)
    if a.get("p_partner") is not None:
        walks.append((a["N2"], matrices))
    if kind == "dkdv":  # own queries, and those of the images whose partner it is
        readers = 0 if a["p_reader"] is None else a["p_reader"].shape[0]
        walks = [(a["M"], matrices * a["OWN"] + readers * a["H"])]
    tail = a.get("TAIL", TAIL.value)
    main_iterations = tiles * sum(count * (n // step) for n, count in walks)
    tail_iterations = tiles * sum(count * -(-(n % step) // tail) for n, count in walks)
    size = next(x for x in a.values() if isinstance(x, Pointer)).dtype.itemsize
    owned, streamed = _row_bytes(kind, a["D"], size)
    return Work(
        kind=kind,
        programs=launch.programs,
        block_m=a["BM"],
        block_n=a["BN"],
        tail=tail,
        useful=rows * sum(n * count for n, count in walks),
        main_iterations=main_iterations,
        tail_iterations=tail_iterations,
        matmuls=matmuls,
        head_dim=a["D"],
        least_bytes=_least_bytes(launch),
        moved_bytes=matrices * rows * owned + tiles * sum(n * count for n, count in walks) * streamed,
    )


def _row_bytes(kind: str, head_dim: int, size: int) -> tuple[int, int]:
    """Return the bytes moved for each row that a program owns and for each row that it loops over."""
    row = head_dim * size
    return {
        "forward": (2 * row + 4, 2 * row),  # q, out, lse; k, v
        "dq": (4 * row + 12, 2 * row),  # q, out, dout, dq, lse, lse2, delta; k, v
        "dkdv": (4 * row, 2 * row + 8),  # k, v, dk, dv; q, dout, lse2, delta
        "columns": (row + 4, row + 4),  # k, sum; q, t
    }[kind]


def _least_bytes(launch: Launch) -> int:
    """Return the bytes of all tensors, each counted once; only the first M rows of the queries are used."""
    a = launch.arguments
    tensors = {(p.storage, p.offset): p.bytes for p in a.values() if isinstance(p, Pointer)}
    q = a["p_q"]
    return sum(tensors.values()) - q.bytes + q.bytes * a["M"] // q.shape[1]
