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
from torch import Tensor

from dca_triton.distances import k_reciprocal_rerank, squared_distances
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
    # CPU seconds are what a machine would have taken that others did not use meanwhile.
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    report = {**vars(options), "threads": torch.get_num_threads(), **times}
    print(json.dumps({**report, "peak_gb": round(peak / 1e9, 2), "mAP": found.mAP}))


if __name__ == "__main__":
    main()
