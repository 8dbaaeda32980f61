"""A deterministic simulation of the engine: a story (`tests.support.stories`) runs in one thread.

The engine's own code runs, its loop too; only its thread is replaced. Where the loop would wait, and as each
step starts, the story acts: requests arrive and are aborted, weights change, and faults strike. Some requests
have a grammar or an adapter, some engines sleep, some models yield what is no number, and some engines have a
KV connector with a small host memory, whose copies are slow and may fail.
The fake runner computes tokens as a function of the tokens that it reads from its KV cache, so that a wrong
block, row or order is a wrong token. After each step the books are checked; at the end each caller has its
answer, once.

A fault is the N-th pass of a named site (`stories.SITES`). Most end the engine, and every caller must be
told; that of a sink ends its own request only.

`Story.test()` is the text of a test that runs the same story.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

from dodona.runners.control import _change_weights
from dodona.runners.engine import core as core_module
from dodona.runners.engine import engine as engine_module
from dodona.runners.engine.engine import Engine, _Call
from dodona.runners.engine.events import Event
from dodona.runners.engine.kv_blocks import KVBlocks
from dodona.runners.engine.request import NO_ROW, Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineAsleepError, EngineDeadError
from dodona.runners.interface import KVConnectorMetadata, Runner
from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.offloading.slots import HostSlots
from tests.support.counting_grammar import CountingGrammar
from tests.support.fake_kv_worker import FakeKVWorker
from tests.support.fake_runner import FakeRunner, adapted, fake_runner, solo_run
from tests.support.stories import END, FATAL_SITES, MAX_MODEL_LEN, VOCAB, Arrival, HostMemory, Story

EOS = frozenset({END})


class Fault(Exception):
    """What a fault raises."""


@dataclass
class Caller:
    """What one sequence's caller was told."""

    arrival: Arrival
    request: Request
    events: list[Event] = field(default_factory=list)
    refused: bool = False
    """The engine slept, or had ended, when it came."""
    first_weights: int | None = None


class _NoThread:
    """In place of the engine's thread: the simulation runs the loop itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def start(self) -> None: ...

    def join(self) -> None: ...


class _Waiting(threading.Condition):
    """A condition on which nobody waits: `on_wait` brings what is waited for."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        super().__init__()
        self._on_wait = on_wait

    def wait(self, timeout: float | None = None) -> bool:
        self._on_wait()
        return True


def run(story: Story) -> bool:
    """Run a story to its end; returns whether its fault struck. Raises AssertionError where an invariant does
    not hold."""
    simulation = _Simulation(story)
    simulation.run()
    return simulation.struck is not None


class _Worker(FakeKVWorker):
    """Passes a site before it starts loads."""

    def __init__(self, runner: FakeRunner, memory: HostMemory, pass_site: Callable[[str], None]) -> None:
        super().__init__(runner, seed=memory.seed, most_steps=memory.most_steps, fault_rate=memory.fault_rate)
        self._pass_site = pass_site

    def start_load_kv(self, metadata: KVConnectorMetadata) -> None:
        self._pass_site("transfer")
        super().start_load_kv(metadata)


class _Simulation:
    def __init__(self, story: Story) -> None:
        self.story = story
        sizes = story.sizes
        self.runner = fake_runner(
            {
                "block_size": sizes.block_size,
                "max_num_seqs": sizes.max_num_seqs,
                "max_num_batched_tokens": sizes.max_num_batched_tokens,
                "max_model_len": MAX_MODEL_LEN,
            },
            vocab_size=VOCAB,
            max_steps_in_flight=sizes.max_steps_in_flight,
            num_speculative_tokens=sizes.num_speculative_tokens,
            drafts_on_device=sizes.drafts_on_device,
            on_step=self.on_step,
            guess=CountingGrammar(VOCAB, END).guess,
            lost_every=sizes.lost_every,
        )
        self.runner.initialize_kv_cache(sizes.num_blocks)
        self.worker: _Worker | None = None
        self.connector: BlockTransferScheduler | None = None
        self.slots = HostSlots(0 if sizes.host_memory is None else sizes.host_memory.num_slots)
        if sizes.host_memory is not None:
            self.worker = _Worker(self.runner, sizes.host_memory, self.pass_site)
            self.runner.kv_connector = self.worker
            self.connector = BlockTransferScheduler(self.slots, block_size=sizes.block_size)
        self.scheduler = Scheduler(
            num_blocks=sizes.num_blocks,
            block_size=sizes.block_size,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            enable_chunked_prefill=sizes.enable_chunked_prefill,
            enable_prefix_caching=sizes.enable_prefix_caching,
            num_speculative_tokens=sizes.num_speculative_tokens,
            num_device_drafts=self.runner.num_device_drafts if self.connector is None else 0,
            kv_connector=self.connector,
            max_loras=sizes.max_loras,
        )
        self.num_rows = self.scheduler.num_free_rows
        self.callers: list[Caller] = []
        self.calls: list[Future[Any]] = []
        self.asleep = False
        self.turn = 0
        self.passes: Counter[str] = Counter()
        self.struck: str | None = None
        self.failed_sink = -1
        """The caller whose sink was called last, up to the fault."""
        self.sink_failed_last = False
        """Whether that call brought the end of its request."""
        events: list[tuple[int, int, Callable[[], None]]] = []
        for index, arrival in enumerate(story.arrivals):
            events.append((arrival.turn, index, lambda i=index: self.arrive(i)))
            if arrival.abort_turn is not None:
                events.append((arrival.abort_turn, 100 + index, lambda i=index: self.engine.abort(str(i))))
        events += [(turn, 200, self.change_weights) for turn in story.weight_changes]
        for sleep in story.sleeps:
            events.append((sleep.turn, 201, lambda level=sleep.level: self.sleep(level)))
            events.append((sleep.wake_turn, 202, lambda level=sleep.level: self.wake_up(level)))
        self.due = sorted(events, key=lambda event: event[:2])
        with mock.patch.object(engine_module.threading, "Thread", _NoThread):
            self.engine = Engine(lambda: (self.runner, self.scheduler))
        self.engine._wake = _Waiting(self.idle)

    # --- the story's acts

    def pass_site(self, site: str) -> None:
        """Count a pass of a site; raises where the fault strikes."""
        number = self.passes[site]
        self.passes[site] += 1
        if self.story.fault == (site, number):
            self.struck = site
            raise Fault(site)

    def on_step(self, number: int) -> None:
        self.check_books()
        assert number < 4000, "requests never finish"
        self.turn += 1
        self.act()
        self.pass_site("step")

    def idle(self) -> None:
        """The engine has nothing to do: go to the next act, or end."""
        if self.due:
            self.turn = max(self.turn, self.due[0][0])
            self.act()
        else:
            self.engine.shutdown()

    def act(self) -> None:
        while self.due and self.due[0][0] <= self.turn:
            self.due.pop(0)[2]()

    def arrive(self, index: int) -> None:
        arrival = self.story.arrivals[index]
        params = arrival.params
        limit = MAX_MODEL_LEN
        if params.max_tokens is not None:
            limit = min(limit, len(arrival.prompt) + params.max_tokens)
        new: list[Caller] = []
        others = params.replace(prompt_logprobs=None)
        for i in range(params.n):
            number = len(self.callers) + i
            request = Request(
                f"{index}/{i}", list(arrival.prompt), params if i == 0 else others,
                seed=(params.seed or 0) + i, limit=limit, eos_token_ids=EOS, bad_words_token_ids=(),
                stop_text=None, parent_id=str(index), index=i,
                grammar=arrival.grammar(),  # type: ignore[arg-type]  # it stands for one
                adapter=arrival.adapter, sink=partial(self.take, number), streaming=arrival.streaming,
            )  # fmt: skip
            new.append(Caller(arrival, request))
        self.callers += new
        try:
            self.engine.submit([caller.request for caller in new])
        except (EngineDeadError, EngineAsleepError):
            for caller in new:
                caller.refused = True
        refuses = self.asleep or self.engine._end is not None
        assert all(caller.refused == refuses for caller in new), "it is asleep, and takes requests, or not"

    def change_weights(self) -> None:
        def change(runner: Runner, scheduler: Scheduler) -> None:
            self.pass_site("call")
            runner.reload_weights()
            scheduler.new_weights()

        self.post(change)

    def sleep(self, level: int) -> None:
        """What `EngineControl.sleep` does, without waiting."""

        def sleep(runner: Runner, scheduler: Scheduler) -> None:
            self.pass_site("call")
            _change_weights(runner, scheduler, "sleep", (level,), {})

        self.asleep = True
        self.engine.refuse_requests("asleep")
        self.post(sleep).add_done_callback(lambda done: done.exception() and self.take_requests())

    def wake_up(self, level: int) -> None:
        """What `EngineControl.wake_up` does, and after level 2 `reload_weights`."""

        def wake_up(runner: Runner, scheduler: Scheduler) -> None:
            _change_weights(runner, scheduler, "wake_up", (), {})
            if level == 2:
                runner.reload_weights()
                scheduler.new_weights()

        self.post(wake_up).add_done_callback(lambda done: self.take_requests())

    def take_requests(self) -> None:
        self.asleep = False
        self.engine.refuse_requests(None)

    def post(self, function: Callable[[Runner, Scheduler], None]) -> Future[Any]:
        """A call between two steps, after the requests that came before."""
        future: Future[Any] = Future()
        self.calls.append(future)
        with self.engine._wake:
            if self.engine._end is None:
                self.engine._inbox.append(_Call(function, future, drain=True))
            else:
                future.set_exception(self.engine.dead_error())
        return future

    def take(self, number: int, event: Event) -> None:
        self.callers[number].events.append(event)
        if event is not None:
            if self.struck is None:
                self.failed_sink = number
                self.sink_failed_last = event.finish_reason is not None
            self.pass_site("sink")

    # --- what must hold

    def check_books(self) -> None:
        scheduler = self.scheduler
        blocks = scheduler.blocks
        tables = [request.block_ids for request in (*scheduler.running, *scheduler.loaded)]
        tables += scheduler.transfers.held_blocks()
        users = Counter(block for table in tables for block in table)
        assert all(blocks.num_users(i) == users[i] for i in range(blocks.num_blocks)), "users of blocks"
        assert blocks.num_free == sum(not users[i] for i in range(blocks.num_blocks)), "free blocks"
        rows = [request.row for request in scheduler.running]
        assert len(set(rows)) == len(rows), "a row for two"
        assert NO_ROW not in rows, "a running request without a row"
        assert scheduler.num_free_rows + len(rows) == self.num_rows, "free rows"
        adapters = {request.adapter.key for request in scheduler.running if request.adapter is not None}
        assert len(adapters) <= scheduler.max_loras, "more adapters than places"
        for request in scheduler.running:
            assert not request.finished, "a finished request runs"
            assert len(request.block_ids) * scheduler.block_size >= request.num_computed_tokens, (
                "too few blocks"
            )
        for request in scheduler.waiting:
            assert request.row == NO_ROW, "a waiting request has a row"
            assert not request.block_ids, "a waiting request has blocks"
        for request in scheduler.loaded:
            assert request.row == NO_ROW, "a request whose KV was loaded has a row"
            assert bool(request.block_ids) != request.finished, "its blocks were not kept, or are kept on"

    def run(self) -> None:
        with self.watch_sites():
            self.engine._run()
        end = self.engine._end
        assert end is not None
        if end.cause is not None:
            assert isinstance(end.cause, Fault), repr(end.cause)
        self.act_after_the_end()
        fatal = self.struck in FATAL_SITES
        assert (end.cause is not None) == fatal, f"{self.struck}: {end.cause!r}"
        for caller in self.callers:
            self.check_caller(caller, dead=end.cause is not None)
        if self.struck == "sink":
            last = self.callers[self.failed_sink].events[-1]
            assert last is not None
            assert last.finish_reason == "abort" or self.sink_failed_last, "its request goes on"
        for future in self.calls:
            assert future.done(), "a call was not answered"
        if not fatal:
            self.check_books()
            assert not self.scheduler.running, "requests are left"
            assert self.scheduler.num_unfinished == 0, "requests are counted that are finished"
            assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks, "blocks are lost"
            self.check_transfers()

    def act_after_the_end(self) -> None:
        """Who comes later is told, too."""
        self.turn = 10**6
        self.act()

    def check_transfers(self) -> None:
        """At the end no copy is under way, and each slot of the host's memory is free or has one block."""
        if self.worker is None:
            return
        assert not self.scheduler.transfers.under_way, "transfers go on"
        assert not self.worker.stores, "stores go on"
        assert not self.worker.loads, "loads go on"
        assert not self.worker.ended, "a request was not reported as sent"
        slots = [*self.slots._by_hash.values(), *self.slots._free, *self.slots._unused]
        assert sorted(slots) == list(range(len(slots))), "a slot for two"
        assert not self.slots._in_use, "a slot is read by nobody"
        assert self.story.sizes.host_memory is not None
        assert len(slots) == self.story.sizes.host_memory.num_slots, "slots are lost"

    @contextmanager
    def watch_sites(self) -> Iterator[None]:
        allocate_one, read, bitmask = KVBlocks.allocate_one, FakeRunner.read, CountingGrammar.bitmask

        def allocating(blocks: KVBlocks) -> int:
            self.pass_site("allocate")
            return allocate_one(blocks)

        def reading(runner: FakeRunner, pending: Any) -> None:
            self.pass_site("read")
            read(runner, pending)

        def masking(vocabulary: CountingGrammar, matchers: Any) -> Any:
            self.pass_site("mask")
            return bitmask(vocabulary, matchers)

        quiet = logging.getLogger("dodona.engine")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL)
        try:
            with (
                mock.patch.object(KVBlocks, "allocate_one", allocating),
                mock.patch.object(FakeRunner, "read", reading),
                mock.patch.object(CountingGrammar, "bitmask", masking),
                mock.patch.object(core_module, "_POLL_SECONDS", 0.0),
            ):
                yield
        finally:
            quiet.setLevel(level)

    def check_caller(self, caller: Caller, *, dead: bool) -> None:
        who = caller.request.request_id
        events = caller.events
        if caller.refused:
            assert not events, f"{who} was refused and told"
            return
        ends = [i for i, e in enumerate(events) if e is None or e.finish_reason is not None]
        assert ends == [len(events) - 1], f"{who} was not answered just once, at the end: {events}"
        told = [event for event in events if event is not None]
        tokens = [token for event in told for token in event.token_ids]
        reason = told[-1].finish_reason if told else None
        if events[-1] is None:
            assert dead, f"{who} was told of an end that was not"
            reason = None
        elif reason == "abort":
            asked = caller.arrival.abort_turn is not None
            assert asked or self.struck == "sink", f"{who} was aborted by nobody"
        else:
            may_break = caller.arrival.grammar_breaks_at is not None or self.story.sizes.lost_every
            assert reason in ("stop", "length") or may_break, f"{who} ended with {reason}"
        assert caller.arrival.streaming or len(told) <= 1, f"{who} was told more than once"
        arrival = caller.arrival
        versions = range(self.runner.weights + 1)
        solos = [self.solo(caller, weights) for weights in versions]
        if reason in ("stop", "length", "error"):
            assert (tokens, reason) in solos, f"{who} got {tokens} ({reason}), alone {solos}"
        else:
            assert any(solo[: len(tokens)] == tokens for solo, _ in solos), (
                f"{who} got {tokens}, alone {solos}"
            )
        if arrival.logprobs is not None:
            assert sum(len(event.logprobs) for event in told) == len(tokens), f"{who}: log-probabilities"

    def solo(self, caller: Caller, weights: int) -> tuple[list[int], str]:
        """Its tokens and finish reason, had it the engine to itself."""
        adapter = caller.arrival.adapter
        return solo_run(
            caller.arrival.prompt, caller.request.params, vocab_size=VOCAB, max_model_len=MAX_MODEL_LEN,
            seed=caller.request.seed, eos=EOS, grammar=caller.arrival.grammar(),
            weights=weights if adapter is None else adapted(weights, adapter.key),
            lost_every=self.story.sizes.lost_every,
        )  # fmt: skip
