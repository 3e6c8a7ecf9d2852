"""Run as a program by `make backbones`: check every name of timm and write the table of docs/backbones.md."""

import sys
import time
from pathlib import Path

import timm
import torch
from timm_names import Entry, check, entry_of, names

from dca_triton.model.families import FAMILIES
from dca_triton.ops.launch_table import HEAD_DIMS

HEAD = """# Backbones

{accepted} of the {total} names of timm {version} in the table serve in the paper's layout, and {reference}
in the reference's. The others are refused with the reason in the table. The classes are
{classes}.

`make backbones` writes this page. It builds narrow blocks of each model and compares with timm's own
modules, to 1e-6 in float64: SA, PWCA, GLCA and the rollout in the paper's layout; the tokens that its blocks
take in the reference's.

Swin Transformers train `branches=("sa", "pwca")`, as in the paper: attention within windows of several stages
gives no rollout, by which GLCA would select patches. A partner's keys are those of the same window, with the
same bias of relative positions and the same mask. `pwca_blocks` counts the blocks of all stages. Features
(B, N, C) are those of the last stage, row by row; N is its height times its width, C its `num_features`.
A Swin takes the images that timm's takes: it fills up windows that the grid does not fill.

Blocks of BEiT and Swin add a bias of relative positions to their scores, which the Triton kernels do
not take: they run on PyTorch with `backend="auto"`, and `backend="triton"` refuses them. Where PyTorch
has no fused attention with a learned bias, as on a CPU, training keeps the attention map of each block.

- **Reads** is what stands for an image: the class token or, where there is none, timm's own pooling (`avg`:
  the mean of the patches; `map`: attention pooling). Rollout starts from the weights of the pooling.
- **Norm** is timm's norm of what is read: `norm` of all tokens, `fc_norm` after pooling, or none.
- **Reads** of BEiT is the class token here, where timm reads the mean of the patches: `sa_readout="local"`.
- **D** is the width of a head. The Triton kernels take {dims};
  others run on PyTorch with `backend="auto"`, and `backend="triton"` refuses them. So do 72, 76 and 88 on
  gfx1100. The reference's layout has SA blocks of its own, with a D of their own.
- **CaiT**'s talking heads run on PyTorch, and `backend="triton"` refuses them. In training they keep
  attention maps ([memory and choices](layouts.md#cait)).

| timm name | Class | Reads | Norm | D | Paper's layout | Reference's layout |
|---|---|---|---|---|---|---|
"""


def row(entry: Entry) -> str:
    cells = [entry.cell(layout) for layout in ("paper", "reference")]
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
        classes=", ".join(f"`{family.model.__name__}`" for family in FAMILIES),
        version=timm.__version__,
        dims=", ".join(map(str, HEAD_DIMS)),
    )
    page.write_text(head + "\n".join(map(row, entries)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
