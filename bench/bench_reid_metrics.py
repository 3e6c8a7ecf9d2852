"""Time and memory of the re-identification scores on random features of a benchmark's size, as one JSON line.

python bench/bench_reid_metrics.py                    # MSMT17: 11,659 queries, 82,161 gallery photos
python bench/bench_reid_metrics.py --queries 3368 --gallery 15913 --rerank    # Market-1501
"""

import argparse
import json
import resource
import sys
import time

import torch

from dca_triton.distances import k_reciprocal_rerank
from dca_triton.metrics import reid_metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=11_659)
    parser.add_argument("--gallery", type=int, default=82_161)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--identities", type=int, default=3_060)
    parser.add_argument("--rerank", action="store_true")
    options = parser.parse_args()

    rng = torch.Generator().manual_seed(0)
    people = torch.randn(options.identities, options.width, generator=rng)
    sides = []
    for count in (options.queries, options.gallery):
        ids = torch.randint(options.identities, (count,), generator=rng)
        features = torch.randn(count, options.width, generator=rng).mul_(4).add_(people[ids])
        sides += [features, ids, torch.randint(15, (count,), generator=rng)]

    start = time.perf_counter()
    found = reid_metrics(*sides, rerank=k_reciprocal_rerank if options.rerank else None)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    report = {**vars(options), "threads": torch.get_num_threads(), "seconds": round(seconds, 1)}
    print(json.dumps({**report, "peak_gb": round(peak / 1e9, 2), "mAP": found.mAP}))


if __name__ == "__main__":
    main()
