"""How long a sum over ranks takes, by NCCL and by V2's launches, between GPUs.

    python -m benchmarks.rank_sums --ranks 2

Prints microseconds per sum, the median of graph replays of 64 sums one after the other, for tensors in
bfloat16 of so many bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from dodona.kernels.collective.flagged_sum import flagged_sum, supports_flagged_sum
from dodona.kernels.collective.one_shot_sum import one_shot_sum, supports_one_shot_sum
from dodona.kernels.collective.two_shot_sum import supports_two_shot_sum, two_shot_sum
from dodona.runners.distributed.joining import ENVIRONMENT, process_mesh
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v2.exchange import LaunchExchange, make_exchange

SIZES = tuple(1 << power for power in range(12, 25))
SUMS, REPLAYS = 64, 15


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measure_on_rank, (options.ranks, str(Path(folder) / "store")), options.ranks)


def measure_on_rank(rank: int, ranks: int, store: str) -> None:
    """One rank's part; rank 0 prints."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        store=dist.FileStore(store, ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
        device_id=device,
    )
    group = process_mesh(RankSizes(1, 1, ranks)).tensor
    exchange = make_exchange(group, device)
    if rank == 0:
        print(f"{ranks} x {torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds per sum")
        print(f"{'bytes':>10} {'NCCL':>8} {'one trip':>8} {'two trips':>9} {'with flags':>10}")
    for size in SIZES:
        tensors = [torch.zeros(size // 2, dtype=torch.bfloat16, device=device) for _ in range(8)]
        nccl = replay_time(group.all_reduce, tensors)
        one_shot = two_shot = flagged = float("nan")
        if isinstance(exchange, LaunchExchange):
            inboxes = exchange.inboxes
            if supports_one_shot_sum(tensors[0]):
                one_shot = replay_time(lambda x, inboxes=inboxes: one_shot_sum(x, inboxes), tensors)
            if supports_two_shot_sum(tensors[0], ranks):
                two_shot = replay_time(lambda x, inboxes=inboxes: two_shot_sum(x, inboxes), tensors)
            if supports_flagged_sum(tensors[0], ranks):
                flagged = replay_time(lambda x, inboxes=inboxes: flagged_sum(x, inboxes), tensors)
        if rank == 0:
            print(f"{size:>10} {nccl:>8.1f} {one_shot:>8.1f} {two_shot:>9.1f} {flagged:>10.1f}", flush=True)
    dist.destroy_process_group()


def replay_time(sum_up: Callable[[torch.Tensor], torch.Tensor], tensors: list[torch.Tensor]) -> float:
    """Median microseconds per sum."""
    for tensor in tensors:
        sum_up(tensor)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for i in range(SUMS):
            sum_up(tensors[i % len(tensors)])
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / SUMS)
    return statistics.median(times)


if __name__ == "__main__":
    main()
