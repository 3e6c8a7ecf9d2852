"""Run as a program by `make backbones`: check every name of timm and write the table of docs/backbones.md."""

import sys
import time
from pathlib import Path

import timm
import torch
from timm_names import Entry, check, entry_of, names

from dca_triton.ops.launch_table import HEAD_DIMS

HEAD = """# Backbones

{accepted} of the {total} names of timm {version} whose class is `VisionTransformer` or `Eva` serve in the
paper's layout, and {reference} in the reference's. The others are refused with the reason in the table.
`make backbones` writes this page. It builds two narrow blocks of each model and compares with timm's own
modules, to 1e-6 in float64: SA, PWCA, GLCA and the rollout in the paper's layout; the tokens that its blocks
take in the reference's.

- **Reads** is what stands for an image: the class token or, where there is none, timm's own pooling (`avg`:
  the mean of the patches; `map`: attention pooling). Rollout starts from the weights of the pooling.
- **Norm** is timm's norm of what is read: `norm` of all tokens, `fc_norm` after pooling, or none.
- **D** is the width of a head. The Triton kernels take {dims};
  others run on PyTorch with `backend="auto"`, and `backend="triton"` refuses them. The reference's layout has
  SA blocks of its own, with a D of their own.

| timm name | Class | Reads | Norm | D | Paper's layout | Reference's layout |
|---|---|---|---|---|---|---|
"""


def row(entry: Entry) -> str:
    cells = ["; ".join(entry.reasons[layout]) or "yes" for layout in ("paper", "reference")]
    reads = {"class": "class token"}.get(entry.reads, f"`{entry.reads}`")
    norm = entry.norm if entry.norm == "none" else f"`{entry.norm}`"
    return f"| `{entry.name}` | {entry.kind} | {reads} | {norm} | {entry.head_dim} | {' | '.join(cells)} |"


def main(page: Path) -> int:
    torch.set_num_threads(1)
    entries, failures = [], {}
    for name in names():
        start = time.perf_counter()
        entries.append(entry_of(name))
        try:
            check(entries[-1])
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {failures.get(name, 'sound')} ({time.perf_counter() - start:.1f} s)", flush=True)
    if failures:
        print(f"{len(failures)} of {len(entries)} differ from timm: {', '.join(failures)}", file=sys.stderr)
        return 1
    counts = {layout: sum(not e.reasons[layout] for e in entries) for layout in ("paper", "reference")}
    head = HEAD.format(
        accepted=counts["paper"],
        total=len(entries),
        reference=counts["reference"],
        version=timm.__version__,
        dims=", ".join(map(str, HEAD_DIMS)),
    )
    page.write_text(head + "\n".join(map(row, entries)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
