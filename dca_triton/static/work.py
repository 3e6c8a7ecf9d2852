"""What a recorded launch computes: iterations of its loops, scores needed and executed, bytes needed and
moved."""

from dataclasses import dataclass

from ..kernels.rollout import TAIL
from .capture import Launch, Pointer

# Kernel -> what it computes for a score, and the products of depth D that this takes.
KINDS = {
    "attention_forward": ("forward", 2),
    "attention_dq": ("dq", 3),
    "attention_dkdv": ("dkdv", 4),
    "rollout_columns": ("columns", 1),
}


@dataclass(frozen=True)
class Work:
    """Totals over all programs of a launch, except matmuls and head_dim, which are per score.

    useful: scores that the mathematics needs. least_bytes: every input read and every output written once.
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
        """Rows that one iteration of a main loop walks."""
        return self.block_n if self.kind in ("forward", "dq") else self.block_m

    @property
    def executed(self) -> int:
        """Scores that the launch computes, rows and columns past the ends included."""
        owned = self.block_m * self.block_n // self.step
        return owned * (self.main_iterations * self.step + self.tail_iterations * self.tail)


def work_of(launch: Launch) -> Work:
    """The work of a launch of one of the kernels in `KINDS`, which name those that compute scores."""
    a = launch.arguments
    kind, matmuls = KINDS[launch.name]
    owner, walked = (a["BM"], "N") if kind in ("forward", "dq") else (a["BN"], "M")
    step = a["BN"] if kind in ("forward", "dq") else a["BM"]
    rows = a["M"] if kind in ("forward", "dq") else a["N"]
    tiles = -(-rows // owner)
    matrices = launch.programs // tiles  # images times heads
    walks = [(a[walked], matrices)]  # how many rows, by how many matrices
    if a.get("p_partner") is not None:
        walks.append((a["N2"], matrices))
    if kind == "dkdv":  # each image's own queries, and those of its readers, of whom the batch has so many
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
    """Bytes moved for each row that a program owns and for each row that it walks."""
    row = head_dim * size
    return {
        "forward": (2 * row + 4, 2 * row),  # q, out, lse; k, v
        "dq": (4 * row + 12, 2 * row),  # q, out, dout, dq, lse, lse2, delta; k, v
        "dkdv": (4 * row, 2 * row + 8),  # k, v, dk, dv; q, dout, lse2, delta
        "columns": (row + 4, row + 4),  # k, sum; q, t
    }[kind]


def _least_bytes(launch: Launch) -> int:
    """Every tensor once, however often it is passed; of the queries the M rows that count."""
    a = launch.arguments
    tensors = {(p.storage, p.offset): p.bytes for p in a.values() if isinstance(p, Pointer)}
    q = a["p_q"]
    return sum(tensors.values()) - q.bytes + q.bytes * a["M"] // q.shape[1]
