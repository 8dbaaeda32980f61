"""Decides what the next step computes, and takes its result.

Requests run in order of arrival. A step decodes every running request first, then goes on with prompts that
are partly computed, then admits new ones, within `max_num_batched_tokens` tokens and `max_num_seqs`
requests. A request is admitted when there are blocks for all its tokens; later it needs one more block
every `block_size` tokens. When there is none, the request that came last gives its blocks back and waits at
the head of the queue, to be computed again.

A request whose KV a connector can load gets its blocks and waits without a row until the load ends; then it
starts before all others. Where nothing else can run, steps without rows hear of it.

The next step may be scheduled before the results of earlier steps have been read. Counts therefore include
tokens that are still in flight; see `Request.num_tokens`.

Where the steps under way are micro-batches, one for each stage of a pipeline, a request decodes when all its
tokens have been read, and a step takes its share of those that run: so they are of different requests. Chunks
of one prompt may follow each other at once.

Where the runner drafts, a request is scheduled when all its tokens have been read, with as many drafts as fit
into what is left of its length, of the step's tokens and of the free blocks: drafts preempt nobody. Counts
include all drafts until the step is read; then those of rejected drafts are taken back. Their blocks stay,
and their KV is overwritten by the tokens that come in their place.

Where the device drafts, it has the same number of drafts for each row after every step. A request is then
scheduled while steps of it are unread, if there is room for the most that these may yield and for all drafts
after that. Its counts are the most until they are read. It waits, as above, if it has a grammar or is that
near its end.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from dodona.oracle.systems.own.lengths import most_blocks_of_window
from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.engine.grammar import Grammar
from dodona.runners.engine.kv_blocks import KVBlocks, block_hash, root_hash
from dodona.runners.engine.kv_transfers import KVTransfers
from dodona.runners.engine.request import NO_ROW, Request
from dodona.runners.engine.step_batch import ScheduledStep, StepBatch, new_request
from dodona.runners.engine.window_blocks import Windows
from dodona.runners.interface import FurtherTokens, NewRequest, SchedulerOutput, StepOutput
from dodona.runners.kv_transfer.connector import KVConnectorScheduler


class Scheduler:
    """Requests, rows and KV blocks of one engine. Not thread-safe."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_chunked_prefill: bool = True,
        max_unchunked_tokens: int = 0,
        enable_prefix_caching: bool = True,
        num_speculative_tokens: int = 0,
        num_device_drafts: int = 0,
        num_micro_batches: int = 1,
        max_loras: int = 0,
        kv_connector: KVConnectorScheduler | None = None,
        window: int | None = None,
        window_groups: Iterable[tuple[int, int]] = (),
    ) -> None:
        """
        num_speculative_tokens: most drafts of a row (`Runner.num_speculative_tokens`).
        num_device_drafts: see `Runner.num_device_drafts`; 0 also where something beside the runner must know
            how many tokens are computed.
        num_micro_batches: steps that share the running requests (`Runner.num_micro_batches`).
        max_unchunked_tokens: a prompt of at most as many tokens waits until it fits whole into a step.
        max_loras: most different adapters of the running requests.
        window, window_groups: see `Windows`; none of them with a KV connector, which reads whole blocks.
        """
        self.blocks = KVBlocks(num_blocks, block_size)
        self.windows = Windows(self.blocks, window, window_groups)
        # Where all layers slide, a long prompt gets blocks for its next step as others are given back.
        self._most_blocks = sys.maxsize
        if window is not None:
            self._most_blocks = most_blocks_of_window(window, max_num_batched_tokens, block_size)
        self.block_size = block_size
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enable_chunked_prefill = enable_chunked_prefill
        self.max_unchunked_tokens = max_unchunked_tokens
        self.enable_prefix_caching = enable_prefix_caching
        self.max_loras = max_loras
        self.transfers = KVTransfers(kv_connector or KVConnectorScheduler(), self.blocks)
        self._hashes_blocks = enable_prefix_caching or self.transfers.connector.needs_block_hashes
        self.waiting: deque[Request] = deque()
        """In order of arrival, preempted ones first; may hold finished requests, which are skipped."""
        self.loaded: deque[Request] = deque()
        """Requests whose KV was loaded: they have blocks and wait for a row. May hold finished ones too."""
        self.running: list[Request] = []
        """In order of arrival."""
        self.num_unfinished = 0
        self.num_preemptions = 0
        self.draft_stats = DraftStats.zero(num_speculative_tokens)
        self.num_speculative_tokens = num_speculative_tokens
        self.num_micro_batches = num_micro_batches
        self._ahead: DeviceDrafts | None = None
        """What a row verifies in a step that is scheduled before the one before it is read; None where no row
        does. A window is given back by tokens that are known."""
        if num_device_drafts and num_micro_batches == 1 and not self.windows.slide:
            self._ahead = DeviceDrafts(num_device_drafts)
        self._num_structured = 0
        """Unfinished requests that have a grammar."""
        # No more rows than tokens in the budget, so that each running request can decode in every step.
        self._free_rows = list(range(min(max_num_seqs, max_num_batched_tokens) - 1, -1, -1))
        self._freed_rows: list[int] = []
        """Rows that the runner has not been told yet to be free."""
        self._num_steps = 0

    @property
    def num_free_rows(self) -> int:
        """State rows that no running request holds."""
        return len(self._free_rows)

    @property
    def reads_first(self) -> bool:
        """Whether a request's next step is scheduled only once its last one was read: then to launch a step
        before that would part the requests into groups that take turns."""
        return self.num_speculative_tokens > 0 and self._ahead is None and self.num_micro_batches == 1

    @property
    def is_idle(self) -> bool:
        """Whether no request is unfinished and no block is transferred."""
        return not (self.num_unfinished or self.transfers.under_way)

    def add(self, request: Request) -> None:
        """Put a new request at the end of the queue."""
        self.waiting.append(request)
        self.num_unfinished += 1
        self._num_structured += request.grammar is not None

    def abort(self, request: Request) -> None:
        """End a request that is not finished."""
        request.abort()
        self._retire([request])

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes: their KV is void. Raises RuntimeError while requests are unfinished."""
        if self.num_unfinished:
            raise RuntimeError(f"{self.num_unfinished} requests hold KV that is to be void")
        self.blocks.forget()
        self.windows.reset()

    def new_weights(self, fingerprint: str | None = None) -> None:
        """Forget cached prefixes, here and in the KV connector: their KV belongs to the old weights.

        fingerprint: of the new weights, see `KVConnectorScheduler.reset_cache`. Raises RuntimeError while
        requests are unfinished.
        """
        self.reset_prefix_cache()
        self.transfers.connector.reset_cache(fingerprint)

    def schedule(self) -> ScheduledStep | None:
        """The next step, or None when nothing can run (until a step under way was read, or at all).

        While KV is transferred, a step without rows takes the place of None.
        """
        new_blocks: list[tuple[int, list[int]]] = []
        drafts: dict[int, Sequence[int]] = {}
        decoding, verifying, prefilling = self._decode(new_blocks, drafts)

        batch = StepBatch(decoding, self.max_num_batched_tokens)
        for request, num_drafts in verifying:
            batch.add_drafts(request, num_drafts)
        for request in prefilling:
            if batch.budget:
                self._compute_chunk(request, batch, new_blocks)
        new_requests: list[NewRequest] = []
        while batch.budget and self._free_rows and (newcomer := self._admit(batch.budget)):
            new_requests.append(new_request(newcomer))
            self._compute_chunk(newcomer, batch, new_blocks)

        if not batch.rows and not self.transfers.under_way:
            return None
        output = SchedulerOutput(
            step=self._num_steps,
            freed_rows=self._freed_rows,
            new_requests=new_requests,
            new_blocks=new_blocks,
            rows=batch.rows,
            num_tokens=batch.num_tokens,
            num_computed_tokens=batch.num_computed_tokens,
            samples=batch.samples,
            num_decodes=batch.num_decodes,
            draft_token_ids=drafts,
            window_blocks=self.windows.take_attached() if self.windows.groups else (),
            kv_connector_metadata=self.transfers.metadata(is_idle=not self.running),
        )
        self._num_steps += 1
        self._freed_rows = []
        structured: list[tuple[int, Grammar]] = []
        if self._num_structured:
            structured = [(r.row, r.grammar) for r in batch.sampling if r.grammar is not None]
        return ScheduledStep(output, batch.sampling, batch.prompt_chunks, structured)

    def update(self, step: ScheduledStep, result: StepOutput) -> list[Request]:
        """Take a step's result. Returns the requests with news: those that finished by it, and streaming
        ones.

        Steps must be given in the order in which they were scheduled.
        """
        if result.pooled:
            return self._take_pooled(step.sampling, result)
        news: list[Request] = []
        finished: list[Request] = []
        for request, row, start in step.prompt_chunks:
            # A chunk that is computed again after a preemption brings again what is known.
            request.prompt_logprobs.extend(
                result.prompt_logprobs[row][len(request.prompt_logprobs) - start :]
            )
        drafts, proposed = step.output.draft_token_ids, result.draft_token_ids
        for request, row, token_id in zip(step.sampling, result.rows, result.token_ids, strict=True):
            if request.finish_reason is not None:
                continue  # it ended while this step was under way
            if row in drafts:
                self._settle_drafts(request, len(drafts[row]), result.further.get(row))
            if request.wants_logprobs:
                request.logprobs.append(result.logprobs[row])
            num_tokens = request.append(token_id)
            if row in result.further and request.finish_reason is None:
                num_tokens = request.extend(*result.further[row])
            if num_tokens > request.next_block_end:
                self._remember_full_blocks(request)
            # A step that was scheduled meanwhile verifies the drafts.
            if row in proposed and request.row != NO_ROW and request.num_tokens == len(request.token_ids):
                request.draft_token_ids = proposed[row]
            if request.finish_reason is not None:
                finished.append(request)
                news.append(request)
            elif request.streaming:
                news.append(request)
        if finished:
            self._retire(finished)
        if result.kv_connector_output is not None:
            self._take_loaded(self.transfers.update(result.kv_connector_output))
        return news

    def _take_pooled(self, requests: Sequence[Request], result: StepOutput) -> list[Request]:
        """End the requests of a step that computed whole prompts for a pooling model."""
        finished = [request for request in requests if not request.finished]
        for request, row in zip(requests, result.rows, strict=True):
            if not request.finished:
                pooled = result.pooled[row]
                request.finish_pooled(pooled, is_finite=bool(np.isfinite(pooled).all()))
        if finished:
            self._retire(finished)
        return finished

    def _decode(
        self, new_blocks: list[tuple[int, list[int]]], drafts: dict[int, Sequence[int]]
    ) -> tuple[list[Request], list[tuple[Request, int]], list[Request]]:
        """Count one more token for each request that decodes, and its drafts. Returns those that decode one
        token, those that verify drafts, which go into `drafts` by row, with their number, and those that
        prefill."""
        decoding: list[Request] = []
        verifying: list[tuple[Request, int]] = []
        prefilling: list[Request] = []
        blocks, ahead = self.blocks, self._ahead
        num_ahead = 0 if ahead is None else len(ahead)
        reads_first = self.num_speculative_tokens > 0 or self.num_micro_batches > 1
        shares = self.num_micro_batches > 1
        share = -(-len(self.running) // self.num_micro_batches)
        # Each running request may compute a token before any draft is verified.
        budget = self.max_num_batched_tokens - len(self.running)
        for request in self.running:  # preemption takes from the list's end, where this loop has not been
            if request.num_computed_tokens < request.num_prefill_tokens:
                prefilling.append(request)
                continue
            if request.num_tokens >= request.schedulable_until:
                continue  # its last tokens, or those that its grammar waits for, are under way
            if reads_first and request.num_tokens > len(request.token_ids):
                # With them come the drafts to verify, unless the device has these; or they are in another
                # micro-batch.
                if ahead is not None and num_ahead <= budget and self._goes_ahead(request, 1 + num_ahead):
                    budget -= num_ahead
                    self._count_tokens(request, 1 + num_ahead, new_blocks)
                    drafts[request.row] = ahead
                    verifying.append((request, num_ahead))
                continue
            if shares and len(decoding) + len(verifying) == share:
                continue
            is_full = request.num_computed_tokens == request.capacity
            if self.windows.slide and (
                is_full or request.draft_token_ids
            ):  # drafts may reach into new blocks
                self.windows.forget_unseen(request)
            if is_full:
                while not blocks.num_free and self._preempt_latest() is not request:
                    pass
                if request.row == NO_ROW:
                    break
                block_id = blocks.allocate_one()
                request.block_ids.append(block_id)
                request.capacity += self.block_size
                new_blocks.append((request.row, [block_id]))
                if self.windows.groups:
                    self.windows.attach(request, request.capacity)
            request.num_computed_tokens += 1
            request.num_tokens += 1
            if request.draft_token_ids:
                taken = self._take_drafts(request, budget, new_blocks)
                if taken:
                    budget -= len(taken)
                    drafts[request.row] = taken
                    verifying.append((request, len(taken)))
                    continue
            decoding.append(request)
        return decoding, verifying, prefilling

    def _take_drafts(
        self, request: Request, budget: int, new_blocks: list[tuple[int, list[int]]]
    ) -> Sequence[int]:
        """The request's drafts for this step, counted, with blocks; it keeps none for a later one."""
        drafts, request.draft_token_ids = request.draft_token_ids, ()
        room = request.capacity + self.blocks.num_free * self.block_size - request.num_computed_tokens
        most = min(budget, request.limit - request.num_tokens, room)
        drafts = drafts[: max(0, most)]
        if request.grammar is not None:
            drafts = drafts[: request.grammar.num_allowed(drafts)]
        self._count_tokens(request, len(drafts), new_blocks)
        return drafts

    def _goes_ahead(self, request: Request, count: int) -> bool:
        """Whether the request's next step, of `count` tokens, can be scheduled while it has unread ones,
        after the most tokens that these may yield."""
        if request.grammar is not None or request.num_tokens + count > request.limit:
            return False
        missing = request.num_computed_tokens + count - request.capacity
        return missing <= 0 or missing <= self.blocks.num_free * self.block_size

    def _count_tokens(self, request: Request, count: int, new_blocks: list[tuple[int, list[int]]]) -> None:
        """Count tokens that a step computes and whose drafts it verifies, and give the request blocks for
        them, which are there."""
        request.num_computed_tokens += count
        request.num_tokens += count
        if request.num_computed_tokens > request.capacity:
            missing = self.blocks.blocks_for(request.num_computed_tokens) - len(request.block_ids)
            block_ids = self.blocks.allocate(missing)
            request.block_ids += block_ids
            request.capacity += missing * self.block_size
            new_blocks.append((request.row, block_ids))
            self.windows.attach(request, request.num_computed_tokens)

    def _settle_drafts(self, request: Request, num_drafts: int, further: FurtherTokens | None) -> None:
        """Take back what was counted for the drafts of a step that were rejected."""
        accepted = 0 if further is None else len(further.token_ids)
        request.num_draft_tokens += num_drafts
        request.num_accepted_tokens += accepted
        self.draft_stats.add(num_drafts, accepted)
        request.num_tokens -= num_drafts - accepted
        if request.row != NO_ROW:  # else it was preempted, and nothing of it counts as computed
            request.num_computed_tokens -= num_drafts - accepted

    def _compute_chunk(
        self, request: Request, batch: StepBatch, new_blocks: list[tuple[int, list[int]]]
    ) -> None:
        """Put the request's next tokens into the batch, as many as the budget allows."""
        if self.windows.slide:
            self.windows.forget_unseen(request)
            end = min(request.num_prefill_tokens, request.num_computed_tokens + batch.budget)
            if end > request.capacity and not self._grow(request, end, new_blocks):
                return
        batch.add_chunk(request)
        if self.windows.groups:
            self.windows.attach(request, request.num_computed_tokens)
        if request.num_computed_tokens >= request.next_block_end:
            # The blocks can be found before they are computed. A request that finds them comes later in this
            # batch or in a later step, and the runner writes KV in that order.
            self._remember_full_blocks(request)

    def _grow(self, request: Request, end: int, new_blocks: list[tuple[int, list[int]]]) -> bool:
        """Give a prompt blocks up to its token `end`; where there are too few, because others share what it
        gave back, it is computed again later, and False is returned."""
        missing = self.blocks.blocks_for(end) - len(request.block_ids)
        if missing > self.blocks.num_free:
            if self.running[-1] is request:
                self._preempt_latest()
            return False
        block_ids = self.blocks.allocate(missing)
        request.block_ids += block_ids
        request.capacity += missing * self.block_size
        new_blocks.append((request.row, block_ids))
        return True

    def _admit(self, budget: int) -> Request | None:
        """Start the first request that can run: one whose KV was loaded, else the first waiting one if there
        is room for it."""
        while self.loaded and self.loaded[0].finished:
            self.loaded.popleft()
        if self.loaded:
            fits = self._fits(self.loaded[0], self.loaded[0].num_computed_tokens, budget)
            return self._start(self.loaded.popleft()) if fits else None
        undecided: list[Request] = []
        started: Request | None = None
        while self.waiting and started is None:
            request = self.waiting[0]
            if request.finished:
                self.waiting.popleft()
                continue
            cached = self._cached_blocks(request)
            if cached is None:
                break
            num_external = self._external_tokens(request, cached)
            if num_external is None:
                undecided.append(self.waiting.popleft())
                continue
            if not num_external and not self._fits(request, len(cached) * self.block_size, budget):
                break
            self.waiting.popleft()
            self._give_blocks(request, cached, num_external)
            if not num_external:
                started = self._start(request)
        self.waiting.extendleft(reversed(undecided))
        return started

    def _fits(self, request: Request, num_computed_tokens: int, budget: int) -> bool:
        """Whether what is left to compute may go into a step with this budget, beside what runs."""
        if not self._has_place_for_adapter(request):
            return False
        num_tokens = len(request.token_ids) - num_computed_tokens
        may_split = self.enable_chunked_prefill and num_tokens > self.max_unchunked_tokens
        return may_split or num_tokens <= budget

    def _cached_blocks(self, request: Request) -> list[int] | None:
        """The cached blocks that a waiting request begins with, or None where there is no room for it."""
        num_tokens = len(request.token_ids)
        if request.num_tokens != num_tokens:
            return None  # preempted with a token in flight, which the runner must be given
        blocks = self.blocks
        cached: list[int] = []
        if self.enable_prefix_caching and not request.wants_prompt_logprobs:
            # The last token is always computed, since its logits are needed.
            most = (num_tokens - 1) // self.block_size
            hashes = self._block_hashes(request, most)[:most]
            cached = self.windows.find(hashes) if self.windows.slide else blocks.find(hashes)
        num_new_blocks = min(blocks.blocks_for(num_tokens) - len(cached), self._most_blocks)
        # A block left for each running request: else a newcomer, or who was just preempted, would not stay.
        spare = len(self.running) + len(self.loaded) + self.transfers.num_loading
        shared = cached[self.windows.num_unseen(len(cached) * self.block_size) :]
        return cached if blocks.can_allocate(num_new_blocks + spare, shared) else None

    def _external_tokens(self, request: Request, cached: list[int]) -> int | None:
        """Tokens after the cached ones that the connector can load; None where it doesn't know yet."""
        if request.wants_prompt_logprobs:
            return 0
        if self._hashes_blocks:
            self._block_hashes(request, (len(request.token_ids) - 1) // self.block_size)
        return self.transfers.find(request, len(cached) * self.block_size)

    def _give_blocks(self, request: Request, cached: list[int], num_external_tokens: int) -> None:
        """Give a waiting request the cached blocks, and new ones for the rest of its tokens, or as many as it
        may hold at once."""
        num_tokens = len(request.token_ids)
        request.num_forgotten_blocks = self.windows.num_unseen(len(cached) * self.block_size)
        self.blocks.share(cached[request.num_forgotten_blocks :])
        missing = self.blocks.blocks_for(num_tokens) - len(cached)
        new = self.blocks.allocate(min(missing, self._most_blocks))
        request.block_ids = cached + new
        request.capacity = len(request.block_ids) * self.block_size
        request.num_computed_tokens = len(cached) * self.block_size + num_external_tokens
        request.num_remembered_blocks = len(cached)
        request.next_block_end = (len(cached) + 1) * self.block_size if self._hashes_blocks else sys.maxsize
        self.windows.begin(request)
        self.transfers.give_blocks(request, new, num_external_tokens)

    def _start(self, request: Request) -> Request:
        """Give a row to a request that has blocks."""
        request.row = self._free_rows.pop()
        request.num_prefill_tokens = len(request.token_ids)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
        self.running.append(request)
        return request

    def _has_place_for_adapter(self, request: Request) -> bool:
        """Whether the running requests and this one have at most `max_loras` adapters."""
        if request.adapter is None:
            return True
        keys = {running.adapter.key for running in self.running if running.adapter is not None}
        return len(keys | {request.adapter.key}) <= self.max_loras

    def _take_loaded(self, requests: list[Request]) -> None:
        """Requests whose KV was loaded can start; aborted ones end now."""
        for request in requests:
            if request.finished:
                self._release(request)
            else:
                self._remember_full_blocks(request)
                self.loaded.append(request)

    def _preempt_latest(self) -> Request:
        """Take row and blocks from the request that came last; it will be computed again."""
        request = self.running.pop()
        self.transfers.preempt(request)
        self._take_back(request)
        request.num_computed_tokens = 0
        request.draft_token_ids = ()
        self.waiting.appendleft(request)
        self.num_preemptions += 1
        return request

    def _retire(self, requests: list[Request]) -> None:
        """Take row and blocks from requests that are finished; blocks that are being written, later."""
        for request in requests:
            if request.block_ids and not self.transfers.is_loading(request):
                self._release(request)
            self._num_structured -= request.grammar is not None
        self.num_unfinished -= len(requests)
        self.running = [request for request in self.running if request.row != NO_ROW]

    def _release(self, request: Request) -> None:
        self.transfers.end(request)
        self._take_back(request)

    def _take_back(self, request: Request) -> None:
        if request.row != NO_ROW:
            self._free_rows.append(request.row)
            self._freed_rows.append(request.row)
            request.row = NO_ROW
        self.windows.end(request)
        request.block_ids = []
        request.num_forgotten_blocks = 0
        request.capacity = 0

    def _remember_full_blocks(self, request: Request) -> None:
        """Put blocks into the prefix cache whose tokens are all known, and computed or about to be. Without
        prefix caching, they only get their hashes."""
        first = max(request.num_remembered_blocks, request.num_forgotten_blocks)
        num_full = min(request.num_computed_tokens, len(request.token_ids)) // self.block_size
        hashes = self._block_hashes(request, num_full)
        for index in range(first, num_full if self.enable_prefix_caching else first):
            self.blocks.remember(request.block_ids[index], hashes[index])
        request.num_remembered_blocks = num_full
        request.next_block_end = (num_full + 1) * self.block_size

    def _root_hash(self, request: Request) -> bytes:
        adapter = request.adapter
        return root_hash(b"" if adapter is None else adapter.key)

    def _block_hashes(self, request: Request, count: int) -> list[bytes]:
        """Hashes of the request's leading blocks, at least `count` of them."""
        hashes, size = request.block_hashes, self.block_size
        for begin in range(len(hashes) * size, count * size, size):
            previous = hashes[-1] if hashes else self._root_hash(request)
            hashes.append(block_hash(previous, request.token_ids[begin : begin + size]))
        return hashes
