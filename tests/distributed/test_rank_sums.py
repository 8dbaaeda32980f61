"""Which sums over ranks take one launch, and the check of them at the start."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.collective.messages import make_inboxes, sum_reference
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v2 import rank_sums
from tests.support.thread_ranks import run_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ranks", "x", "way"),
    [
        (2, torch.zeros(1, 4096, dtype=torch.bfloat16), "one trip"),
        (2, torch.zeros(rank_sums.LARGEST_ONE_SHOT // 4), "one trip"),
        (2, torch.zeros(rank_sums.LARGEST_ONE_SHOT // 4 + 1), "group"),
        (2, torch.zeros(3, 5, dtype=torch.bfloat16), "group"),
        (2, torch.zeros(0, 8), "group"),
        (2, torch.zeros(4, 4).t(), "group"),
        (4, torch.zeros(rank_sums.LARGEST_ONE_SHOT_OF_MORE // 4), "one trip"),
        (4, torch.zeros(rank_sums.LARGEST_ONE_SHOT_OF_MORE // 4 + 1), "two trips"),
        (4, torch.zeros(rank_sums.LARGEST_TWO_SHOT // 4), "two trips"),
        (4, torch.zeros(rank_sums.LARGEST_TWO_SHOT // 4 + 1), "group"),
        (3, torch.zeros(3, 5, dtype=torch.bfloat16), "group"),
    ],
)
def test_which_way_a_sum_takes(monkeypatch, ranks, x, way):
    class Group:
        rank, size = 0, ranks

        def all_reduce(self, tensor):
            return "group"

    monkeypatch.setattr(rank_sums, "one_shot_sum", lambda x, inboxes: "one trip")
    monkeypatch.setattr(rank_sums, "two_shot_sum", lambda x, inboxes: "two trips")
    add_up = rank_sums.RankSum(Group(), None, None)
    assert add_up(x) == way


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("wrong_at", [None, 0, 10, 49])
def test_one_wrong_sum_fails_the_check(monkeypatch, wrong_at, ranks):
    """50 sums: the first ten make the kernels ready, and do not count."""

    def work(mesh):
        group, count = mesh.tensor, iter(range(1000))

        def add_up(x, inboxes, patience):
            x.copy_(sum_reference(group.all_gather(x)))
            if next(count) == wrong_at and group.rank == 1:
                x[-1] += 1

        launches[group.rank] = add_up
        return rank_sums.gives_right_sums(group, make_inboxes(group.rank, [0] * ranks, CPU), CPU)

    launches = {}
    for name in ("one_shot_sum", "two_shot_sum"):
        monkeypatch.setattr(
            rank_sums, name, lambda x, inboxes, patience: launches[inboxes.rank](x, inboxes, patience)
        )
    monkeypatch.setattr(rank_sums, "_captured", lambda launch, device: launch)
    found = run_ranks(RankSizes(1, 1, ranks), work)
    assert [is_right for is_right in found if not is_right] == [False] * (wrong_at not in (None, 0))
