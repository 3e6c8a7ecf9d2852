"""Measure time and memory of the Re-ID metrics on random features, and print one JSON line.

python -m bench.reid_metrics                    # MSMT17: 11,659 queries, 82,161 gallery photos
python -m bench.reid_metrics --queries 3368 --gallery 15913 --rerank    # Market-1501
"""

import argparse
import json
import resource
import sys
import time

import torch
from torch import Tensor

from dca_triton.evaluation import k_reciprocal_rerank, reid_metrics, squared_distances

from .arguments import positive


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reid_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--queries", type=positive, default=11_659, help="query photos")
    parser.add_argument("--gallery", type=positive, default=82_161, help="gallery photos")
    parser.add_argument("--width", type=positive, default=768, help="feature dimension")
    parser.add_argument("--identities", type=positive, default=3_060, help="identities")
    parser.add_argument("--rerank", action="store_true", help="use k-reciprocal re-ranking")
    options = parser.parse_args()

    rng = torch.Generator().manual_seed(0)
    people = torch.randn(options.identities, options.width, generator=rng)

    def photos(count: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.randint(options.identities, (count,), generator=rng)
        features = torch.randn(count, options.width, generator=rng).mul_(4).add_(people[ids])
        return features, ids, torch.randint(15, (count,), generator=rng)

    queries, gallery = photos(options.queries), photos(options.gallery)

    start, start_cpu = time.perf_counter(), time.process_time()
    found = reid_metrics(
        *queries, *gallery, distances=k_reciprocal_rerank if options.rerank else squared_distances
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Other processes on the machine slow the wall clock, but not the CPU time.
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    report = {**vars(options), "threads": torch.get_num_threads(), **times}
    print(json.dumps({**report, "peak_gb": round(peak / 1e9, 2), "mAP": found.mAP}))


if __name__ == "__main__":
    main()
