"""Sums over ranks: in the interpreter each rank's messages are delivered before another one looks for
them; on a GPU two streams of one device are the ranks."""

from __future__ import annotations

import itertools

import pytest
import torch

from dodona.kernels.collective import gather_columns as gathering
from dodona.kernels.collective.flagged_sum import flagged_sum, supports_flagged_sum
from dodona.kernels.collective.flagged_sum import max_bytes as max_flagged_bytes
from dodona.kernels.collective.gather_columns import gather_columns, supports_gather_columns
from dodona.kernels.collective.messages import inbox_size, make_inboxes, sum_reference
from dodona.kernels.collective.one_shot_sum import MAX_BYTES, one_shot_sum, supports_one_shot_sum
from dodona.kernels.collective.two_shot_sum import PARTS, max_bytes, supports_two_shot_sum, two_shot_sum

CUDA = torch.cuda.is_available()


class Ranks:
    """All ranks' inboxes on one device."""

    def __init__(self, ranks: int, device: str) -> None:
        self.memory = [
            torch.zeros(inbox_size(ranks) // 8, dtype=torch.int64, device=device) for _ in range(ranks)
        ]
        addresses = [memory.data_ptr() for memory in self.memory]
        self.inboxes = [make_inboxes(rank, addresses, torch.device(device)) for rank in range(ranks)]

    def sum(self, tensors, receiver: int):
        """The sum on one rank. The others give up looking for messages; a rank that has delivered a turn is
        not asked again."""
        results = [tensor.clone() for tensor in tensors]
        for rank, result in enumerate(results):
            if rank != receiver:
                one_shot_sum(result, self.inboxes[rank], patience=1)
        return one_shot_sum(results[receiver], self.inboxes[receiver])

    def sum_in_two_trips(self, tensors, add_up=two_shot_sum):
        """The sums of all ranks, one part of the launches after the other."""
        results = [tensor.clone() for tensor in tensors]
        for part in PARTS[1:]:
            for rank, result in enumerate(results):
                add_up(result, self.inboxes[rank], part=part)
        return results


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float32), (3, torch.float16), (4, torch.float16)])
def test_two_trips_with_flags(ranks, dtype):
    generator = torch.Generator().manual_seed(ranks)
    world = Ranks(ranks, "cpu")
    for shape in [(1, 64), (5, 900), (1, 64), (3, 512 * ranks), (1, 2)]:
        tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(ranks)]
        for result in world.sum_in_two_trips(tensors, flagged_sum):
            assert torch.equal(result, sum_reference(tensors))


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_two_trips(ranks, dtype):
    """Between launches of one trip, which use the same slots."""
    generator = torch.Generator().manual_seed(ranks)
    world = Ranks(ranks, "cpu")
    for turn, shape in enumerate([(1, 64), (5, 300), (1, 64), (3, 128 * ranks), (1, 2)]):
        tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(ranks)]
        for result in world.sum_in_two_trips(tensors):
            assert torch.equal(result, sum_reference(tensors))
        if turn % 2:
            for rank in range(ranks):  # a slot counts its own turns, equal on all ranks
                assert torch.equal(world.inboxes[rank].turns, world.inboxes[0].turns)
            assert torch.equal(world.sum(tensors, receiver=0), sum_reference(tensors))


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
@pytest.mark.parametrize(
    ("ranks", "dtype", "rows", "columns"), [(2, torch.float16, 3, 130), (4, torch.float32, 2, 77)]
)
def test_columns(ranks, dtype, rows, columns):
    """Into rows of a wider matrix, between sums at the same slots."""
    world = Ranks(ranks, "cpu")
    for turn in range(3):
        own = [torch.randn(rows, columns).to(dtype) for _ in range(ranks)]
        wide = [torch.zeros(rows, ranks * columns + 6, dtype=dtype) for _ in range(ranks)]
        for part in gathering.PARTS[1:]:
            for x, out, inboxes in zip(own, wide, world.inboxes, strict=True):
                gather_columns(x=x, out=out[:, 4:-2], inboxes=inboxes, part=part)
        for out in wide:
            assert torch.equal(out[:, 4:-2], torch.cat(own, dim=1))
            assert not torch.cat([out[:, :4], out[:, -2:]], dim=1).any()
        world.sum_in_two_trips([torch.ones(200 * turn + 2) for _ in range(ranks)])


def test_which_columns_are_served():
    assert not supports_gather_columns(torch.zeros(4, 3, dtype=torch.bfloat16))
    assert not supports_gather_columns(torch.zeros(4, 6).t())
    assert not supports_gather_columns(torch.zeros(16))
    x, inboxes = torch.zeros(2, 6), make_inboxes(0, [0, 0], torch.device("cpu"))
    for out in (torch.zeros(2, 11), torch.zeros(2, 12, dtype=torch.bfloat16), torch.zeros(12, 2).t()):
        with pytest.raises(ValueError, match="rows of whole words"):
            gather_columns(x=x, out=out, inboxes=inboxes)


def test_what_two_trips_serve():
    largest = torch.zeros(max_bytes(4) // 4)
    assert supports_two_shot_sum(largest, 4)
    assert not supports_two_shot_sum(torch.zeros(len(largest) + 1), 4)
    largest = torch.zeros(max_flagged_bytes(4) // 4)
    assert supports_flagged_sum(largest, 4)
    assert not supports_flagged_sum(torch.zeros(len(largest) + 1), 4)
    with pytest.raises(ValueError, match="contiguous tensor of at most"):
        two_shot_sum(torch.zeros(4, 4).t()[:2], make_inboxes(0, [0, 0], torch.device("cpu")))


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ranks", [2, 4])
def test_each_rank_gets_the_sum(ranks, dtype):
    generator = torch.Generator().manual_seed(ranks)
    world = Ranks(ranks, "cpu")
    seen = []
    for turn, shape in enumerate([(1, 64), (3, 100), (1, 64), (2, 128), (1, 2)]):
        tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(ranks)]
        result = world.sum(tensors, receiver=turn % ranks)
        assert torch.equal(result, sum_reference(tensors))
        seen.append(turn % ranks)
    assert set(seen) == set(range(ranks))


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
def test_a_rank_that_is_one_turn_ahead():
    """Its next message does not take the place of one that was not read yet, whatever the tensors' sizes."""
    world = Ranks(2, "cpu")
    generator = torch.Generator().manual_seed(0)
    sizes = (130, 700, 2, 260, 130)
    turns = [[torch.randn(size, generator=generator) for _ in range(2)] for size in sizes]
    one_shot_sum(turns[0][0].clone(), world.inboxes[0], patience=1)
    for now, then in itertools.pairwise(turns):
        one_shot_sum(then[0].clone(), world.inboxes[0], patience=1)
        found = one_shot_sum(now[1].clone(), world.inboxes[1])
        assert torch.equal(found, sum_reference(now))


@pytest.mark.skipif(CUDA, reason="ranks wait for each other there")
@pytest.mark.parametrize("last", [2**31 - 1, -1])
def test_turns_wrap_around(last):
    """2**31 turns are a day of decoding."""
    world = Ranks(2, "cpu")
    for inboxes in world.inboxes:
        inboxes.turns.fill_(last - 2)
    for turn in range(5):
        tensors = [torch.full((200,), float(10 * turn + rank)) for rank in range(2)]
        assert torch.equal(world.sum(tensors, receiver=turn % 2), sum_reference(tensors))
    assert world.inboxes[0].turns[0].item() == (last + 3 + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize(
    ("tensor", "served"),
    [
        (torch.zeros(2, 6), True),
        (torch.zeros(3, dtype=torch.float16), False),
        (torch.zeros(4, 4).t()[:2], False),
        (torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(0), False),
        (torch.zeros(MAX_BYTES // 4), True),
        (torch.zeros(MAX_BYTES // 4 + 1), False),
    ],
)
def test_what_is_served(tensor, served):
    assert supports_one_shot_sum(tensor) is served
    if not served:
        with pytest.raises(ValueError, match="contiguous tensor of at most"):
            one_shot_sum(tensor, Ranks.__new__(Ranks))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_streams_of_one_gpu_in_a_graph(dtype):
    ranks = 2
    world, streams = Ranks(ranks, "cuda"), [torch.cuda.Stream() for _ in range(ranks)]
    buffers = [torch.empty(8, 4096, dtype=dtype, device="cuda") for _ in range(ranks)]

    def launch():
        for rank, stream in enumerate(streams):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                one_shot_sum(buffers[rank], world.inboxes[rank])
                one_shot_sum(buffers[rank][:1], world.inboxes[rank])
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)

    def expected(tensors):
        total = sum_reference(tensors)
        total[:1] = sum_reference([total[:1]] * ranks)
        return total

    # A kernel is loaded when it is first launched, for which none may be waiting on the same device.
    for receiver in range(ranks):
        tensors = [torch.ones(8, 64, dtype=dtype, device="cuda") for _ in range(ranks)]
        assert torch.equal(world.sum(tensors, receiver), sum_reference(tensors))
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for seed in range(50):
        generator = torch.Generator("cuda").manual_seed(seed)
        tensors = [torch.randn(8, 4096, device="cuda", generator=generator).to(dtype) for _ in range(ranks)]
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        for buffer in buffers:
            assert torch.equal(buffer, expected(tensors))
