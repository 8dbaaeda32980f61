"""Which sums over ranks take one launch, and the check of them at the start."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.collective.messages import make_inboxes, sum_reference
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v2 import exchange
from tests.support.thread_ranks import run_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ranks", "x", "way"),
    [
        (2, torch.zeros(1, 4096, dtype=torch.bfloat16), "one trip"),
        (2, torch.zeros(exchange.LARGEST_ONE_SHOT // 4), "one trip"),
        (2, torch.zeros(exchange.LARGEST_ONE_SHOT // 4 + 1), "group"),
        (2, torch.zeros(3, 5, dtype=torch.bfloat16), "group"),
        (2, torch.zeros(0, 8), "group"),
        (2, torch.zeros(4, 4).t(), "group"),
        (4, torch.zeros(exchange.LARGEST_ONE_SHOT_OF_MORE // 4), "one trip"),
        (4, torch.zeros(exchange.LARGEST_ONE_SHOT_OF_MORE // 4 + 1), "two trips"),
        (4, torch.zeros(exchange.LARGEST_TWO_SHOT // 4), "two trips"),
        (4, torch.zeros(exchange.LARGEST_TWO_SHOT // 4 + 1), "with flags"),
        (4, torch.zeros(exchange.LARGEST_FLAGGED // 4), "with flags"),
        (4, torch.zeros(exchange.LARGEST_FLAGGED // 4 + 1), "group"),
        (3, torch.zeros(3, 5, dtype=torch.bfloat16), "group"),
    ],
)
def test_which_way_a_sum_takes(monkeypatch, ranks, x, way):
    class Group:
        rank, size = 0, ranks

        def all_reduce(self, tensor):
            return "group"

    monkeypatch.setattr(exchange, "one_shot_sum", lambda x, inboxes: "one trip")
    monkeypatch.setattr(exchange, "two_shot_sum", lambda x, inboxes: "two trips")
    monkeypatch.setattr(exchange, "flagged_sum", lambda x, inboxes: "with flags")
    inboxes = make_inboxes(0, [0] * ranks, CPU)
    by_launch = exchange.LaunchExchange(exchange.GroupExchange(Group()), inboxes, None)
    assert by_launch.sum(x) == way


@pytest.mark.parametrize(
    ("ranks", "wrong_at"),
    [(2, None), (2, 6), (2, 7), (2, 34), (3, 19), (4, None), (4, 18), (4, 19), (4, 36), (4, 94)],
)
def test_one_wrong_result_fails_the_check(monkeypatch, wrong_at, ranks):
    """Five times six launches in each way and one that gathers: the first time makes the kernels ready, and
    does not count."""
    launches = {2: 7, 3: 19, 4: 19}[ranks]

    def work(mesh):
        group, count = mesh.tensor, iter(range(1000))

        def fill(out, result):
            out.copy_(result)
            summed.setdefault(group.rank, []).append(out)
            if next(count) == wrong_at and group.rank == 1:
                out[-1] += 1

        groups[group.rank], fills[group.rank] = group, fill
        return exchange.gives_right_results(group, make_inboxes(group.rank, [0] * ranks, CPU), CPU)

    def add_up(x, inboxes, patience):
        fills[inboxes.rank](x, sum_reference(groups[inboxes.rank].all_gather(x)))

    def gather(x, out, inboxes, patience):
        fills[inboxes.rank](out, torch.cat(list(groups[inboxes.rank].all_gather(x)), dim=1))

    groups, fills, summed = {}, {}, {}
    for name in ("LARGEST_ONE_SHOT", "LARGEST_ONE_SHOT_OF_MORE", "LARGEST_TWO_SHOT", "LARGEST_FLAGGED"):
        monkeypatch.setattr(exchange, name, 4096)
    for name in ("one_shot_sum", "two_shot_sum", "flagged_sum"):
        monkeypatch.setattr(exchange, name, add_up)
    monkeypatch.setattr(exchange, "gather_columns", gather)
    monkeypatch.setattr(exchange, "_captured", lambda launch, device: launch)
    found = run_ranks(RankSizes(1, 1, ranks), work)
    assert found == [True, wrong_at in (None, launches - 1), *[True] * (ranks - 2)]
    assert {rank: len(done) for rank, done in summed.items()} == dict.fromkeys(range(ranks), 5 * launches)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_check_covers_what_serves(monkeypatch, ranks):
    """The largest tensor of each type that a launch sums is among those that the check sums in that way."""
    checked, served = set(), set()

    def note(found, name):
        def add_up(x, inboxes, patience=0):
            found.add((name, x.dtype, x.numel() * x.element_size()))
            return x

        return add_up

    class Group:
        rank, size = 0, ranks

        def all_gather(self, tensor):
            return [tensor] * ranks

        def all_reduce(self, tensor):
            return tensor

    inboxes = make_inboxes(0, [0] * ranks, CPU)
    names = ("one_shot_sum", "two_shot_sum", "flagged_sum")
    monkeypatch.setattr(exchange, "gather_columns", lambda x, out, inboxes, patience: out)
    monkeypatch.setattr(exchange, "_captured", lambda launch, device: launch)
    for name in names:
        monkeypatch.setattr(exchange, name, note(checked, name))
    exchange.gives_right_results(Group(), inboxes, CPU)
    for name in names:
        monkeypatch.setattr(exchange, name, note(served, name))
    by_launch = exchange.LaunchExchange(exchange.GroupExchange(Group()), inboxes, None)
    for dtype in (torch.bfloat16, torch.float32):
        for power in range(2, 24):
            by_launch.sum(torch.empty(2**power // dtype.itemsize, dtype=dtype))
            by_launch.sum(torch.empty(3 * 2 ** (power - 1) // dtype.itemsize, dtype=dtype))
    for name, dtype in {(name, dtype) for name, dtype, _ in served}:
        most = max(size for *way, size in served if way == [name, dtype])
        assert most <= max(size for *way, size in checked if way == [name, dtype])
    assert {name for name, *_ in served} == {name for name, *_ in checked}


def test_columns_by_the_group():
    """Where a launch does not serve them: an odd number of 16-bit columns."""

    def work(mesh):
        x = torch.full((3, 5), float(mesh.tensor.rank), dtype=torch.bfloat16)
        by_group = exchange.GroupExchange(mesh.tensor)
        inboxes = make_inboxes(mesh.tensor.rank, [0, 0], CPU)
        by_launch = exchange.LaunchExchange(by_group, inboxes, None)
        return by_launch.gather_columns(x, x.new_empty(3, 10))

    for out in run_ranks(RankSizes(1, 1, 2), work):
        assert out.tolist() == [[0.0] * 5 + [1.0] * 5] * 3
