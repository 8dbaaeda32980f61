"""Which sums over ranks take one launch, and the check of them at the start."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.collective.one_shot_sum import make_inboxes, one_shot_sum_reference
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v2 import rank_sums
from tests.support.thread_ranks import run_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("x", "in_one_launch"),
    [
        (torch.zeros(1, 4096, dtype=torch.bfloat16), True),
        (torch.zeros(rank_sums.LARGEST_ONE_SHOT // 4), True),
        (torch.zeros(rank_sums.LARGEST_ONE_SHOT // 4 + 1), False),
        (torch.zeros(3, 5, dtype=torch.bfloat16), False),
        (torch.zeros(0, 8), False),
        (torch.zeros(4, 4).t(), False),
    ],
)
def test_which_sums_take_one_launch(monkeypatch, x, in_one_launch):
    class Group:
        rank, size = 0, 2

        def all_reduce(self, tensor):
            return "group"

    monkeypatch.setattr(rank_sums, "one_shot_sum", lambda x, inboxes: "launch")
    add_up = rank_sums.RankSum(Group(), None, None)
    assert add_up(x) == ("launch" if in_one_launch else "group")


@pytest.mark.parametrize("wrong_at", [None, 0, 8, 39])
def test_one_wrong_sum_fails_the_check(monkeypatch, wrong_at):
    """40 sums: the first eight make the kernels ready, and do not count."""

    def work(mesh):
        group, count = mesh.tensor, iter(range(1000))

        def add_up(x, inboxes, patience):
            x.copy_(one_shot_sum_reference(group.all_gather(x)))
            if next(count) == wrong_at and group.rank == 1:
                x[-1] += 1

        launches[group.rank] = add_up
        return rank_sums.gives_right_sums(group, make_inboxes(group.rank, [0, 0], CPU), CPU)

    launches = {}
    monkeypatch.setattr(
        rank_sums, "one_shot_sum", lambda x, inboxes, patience: launches[inboxes.rank](x, inboxes, patience)
    )
    monkeypatch.setattr(rank_sums, "_captured", lambda launch, device: launch)
    found = run_ranks(RankSizes(1, 1, 2), work)
    assert found == [True, wrong_at in (None, 0)]
