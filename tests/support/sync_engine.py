"""The engine's loop without its thread: tests step it by hand, and its books are checked after each step."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from dodona.runners.engine.grammar import grammar_output
from dodona.runners.engine.request import NO_ROW, Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.engine.step_batch import ScheduledStep
from dodona.runners.interface import PendingOutput
from dodona.runners.kv_transfer.connector import KVConnectorScheduler
from dodona.runners.warm_up import warm_up
from tests.support.fake_runner import Guess, fake_runner


class SyncEngine:
    """A fake runner and a scheduler of the same sizes."""

    def __init__(
        self,
        *,
        num_blocks: int = 32,
        block_size: int = 4,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        enable_chunked_prefill: bool = True,
        enable_prefix_caching: bool = True,
        max_steps_in_flight: int = 1,
        vocab_size: int = 97,
        num_speculative_tokens: int = 0,
        drafts_on_device: bool = False,
        num_micro_batches: int = 1,
        guess: Guess | None = None,
        windows: Sequence[int | None] = (None,),
        kv_connector: KVConnectorScheduler | None = None,
    ) -> None:
        self.runner = fake_runner(
            {
                "block_size": block_size,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
            },
            max_steps_in_flight=max(max_steps_in_flight, num_micro_batches),
            vocab_size=vocab_size,
            num_speculative_tokens=num_speculative_tokens,
            drafts_on_device=drafts_on_device,
            guess=guess,
            windows=windows,
        )
        spec = self.runner.get_kv_cache_spec()
        counts = spec.num_window_blocks(num_blocks, self.runner.limits)
        self.runner.initialize_kv_cache(num_blocks)
        warm_up(self.runner)
        self.runner.trace.steps.clear()
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_chunked_prefill=enable_chunked_prefill,
            enable_prefix_caching=enable_prefix_caching,
            num_speculative_tokens=num_speculative_tokens,
            num_device_drafts=self.runner.num_device_drafts,
            num_micro_batches=num_micro_batches,
            window=spec.groups[0].window,
            window_groups=[
                (group.window or 0, count) for group, count in zip(spec.window_groups, counts, strict=True)
            ],
            kv_connector=kv_connector,
        )
        self.num_rows = self.scheduler.num_free_rows
        self.in_flight: deque[tuple[ScheduledStep, PendingOutput]] = deque()
        self.finished: list[Request] = []

    def step(self) -> None:
        """One turn of the engine's loop."""
        step = self.scheduler.schedule()
        self.check()
        if step is not None:
            self.runner.execute_model(step.output)
            allowed = (
                grammar_output(step.structured, step.output.draft_token_ids) if step.structured else None
            )
            self.in_flight.append((step, self.runner.sample_tokens(allowed)))
        if self.in_flight and (step is None or len(self.in_flight) >= self.runner.max_steps_in_flight):
            self.read()
        elif step is None:
            assert not self.scheduler.num_unfinished, "requests are unfinished and none can run"

    def read(self) -> None:
        """Read the oldest step's result."""
        scheduled, pending = self.in_flight.popleft()
        news = self.scheduler.update(scheduled, pending.result())
        self.finished += [request for request in news if request.finished]
        self.check()

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.scheduler.num_unfinished or self.in_flight or self.scheduler.transfers.under_way:
            self.step()

    def check(self) -> None:
        """The books: users of blocks, free blocks, rows."""
        scheduler = self.scheduler
        tables = [
            request.block_ids[request.num_forgotten_blocks :]
            for request in (*scheduler.running, *scheduler.loaded)
        ]
        tables += scheduler.transfers.held_blocks()
        users = Counter(block for table in tables for block in table)
        blocks = scheduler.blocks
        assert [blocks.num_users(i) for i in range(blocks.num_blocks)] == [
            users[i] for i in range(blocks.num_blocks)
        ]
        assert blocks.num_free == sum(not users[i] for i in range(blocks.num_blocks))
        self.check_window_blocks()
        rows = [request.row for request in scheduler.running]
        assert len(set(rows)) == len(rows)
        assert NO_ROW not in rows
        assert scheduler.num_free_rows + len(rows) == self.num_rows
        for request in scheduler.running:
            assert not request.finished
            assert request.num_tokens <= request.limit
            assert len(request.block_ids) * scheduler.block_size >= request.num_computed_tokens
        for request in scheduler.waiting:
            assert request.row == NO_ROW
            assert not request.block_ids
        for request in scheduler.loaded:
            assert request.row == NO_ROW
            assert bool(request.block_ids) != request.finished

    def check_window_blocks(self) -> None:
        """The same for window blocks: what requests use, and that they use no more than they may see."""
        scheduler = self.scheduler
        for number, group in enumerate(scheduler.windows.groups):
            users: Counter[int] = Counter()
            for request in scheduler.running:
                first, end = request.window_spans[number]
                users.update(request.block_ids[first:end])
                assert end * scheduler.block_size >= request.num_computed_tokens
            assert all(group.has(block) for block in users)
            assert [group.num_users(i) for i in range(scheduler.blocks.num_blocks)] == [
                users[i] for i in range(scheduler.blocks.num_blocks)
            ]
            assert group.num_used == len(users) <= group.num_window_blocks

    def check_idle(self) -> None:
        """Nothing is held by anybody."""
        self.check()
        assert not self.scheduler.running
        assert not self.in_flight
        assert self.scheduler.num_unfinished == 0
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks
        assert self.scheduler.num_free_rows == self.num_rows
