"""Bugs that the engine's simulation must find: each is a change of one place of the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """A bug: in a file, one text stands in place of another."""

    name: str
    file: str
    old: str
    new: str


_SCHEDULER = "runners/engine/scheduler.py"
_BLOCKS = "runners/engine/kv_blocks.py"
_ENGINE = "runners/engine/engine.py"
_REQUEST = "runners/engine/request.py"
_TRANSFERS = "runners/engine/kv_transfers.py"
_CONTROL = "runners/control.py"

PLANTED: Sequence[Planted] = (
    Planted("a block hash ignores the tokens before the block", _BLOCKS, "blake2b(previous + ", "blake2b(b'' + "),
    Planted("cached blocks outlive a change of weights", _SCHEDULER, "self.blocks.forget()", "pass"),
    Planted("a shared block gets no user", _BLOCKS, "self._users[block_id] += 1", "self._users[block_id] += 0"),
    Planted("the last block of a table is not released", _BLOCKS, "reversed(block_ids):", "reversed(block_ids[:-1]):"),
    Planted(
        "a block that is handed out can still be found",
        _BLOCKS, "            del self._by_hash[value]\n", "            pass\n",
    ),
    Planted("nobody looks whether there are blocks", _BLOCKS, "return count + revived <= len(self._free)", "return True"),
    Planted(
        "the whole prompt is taken from the cache",
        _SCHEDULER, "most = (num_tokens - 1) // self.block_size", "most = num_tokens // self.block_size",
    ),
    Planted(
        "a preempted request is forgotten",
        _SCHEDULER, "        self.waiting.appendleft(request)\n", "",
    ),
    Planted(
        "a preempted request keeps its drafts",
        _SCHEDULER, "        request.draft_token_ids = ()\n        self.waiting", "        self.waiting",
    ),
    Planted(
        "rejected drafts stay counted as computed",
        _SCHEDULER, "            request.num_computed_tokens -= num_drafts - accepted\n", "            pass\n",
    ),
    Planted(
        "more drafts than the sequence has room for",
        _SCHEDULER, "most = min(budget, request.limit - request.num_tokens, room)", "most = min(budget, room)",
    ),
    Planted("a new block counts one token too many", _SCHEDULER, "request.capacity += self.block_size\n", "request.capacity += self.block_size + 1\n"),
    Planted(
        "the runner does not hear of freed rows",
        _SCHEDULER, "            self._freed_rows.append(request.row)\n", "",
    ),
    Planted("a freed row is lost", _SCHEDULER, "            self._free_rows.append(request.row)\n", ""),
    Planted(
        "a request that ended meanwhile takes a token",
        _SCHEDULER, "            if request.finish_reason is not None:\n                continue", "            if False:\n                continue",
    ),
    Planted(
        "blocks are remembered before all their tokens are known",
        _SCHEDULER, "num_full = min(request.num_computed_tokens, len(request.token_ids)) // self.block_size",
        "num_full = -(-min(request.num_computed_tokens, len(request.token_ids)) // self.block_size)",
    ),
    Planted(
        "a call that drains does not wait",
        _ENGINE, "return not (isinstance(command, _Call) and command.drain and not scheduler.is_idle)",
        "return True",
    ),
    Planted(
        "the last news of an aborted request are not sent",
        _ENGINE, "        self._deliver(siblings)\n\n    def _deliver", "        self._deliver(siblings[1:])\n\n    def _deliver",
    ),
    Planted(
        "who waits is not told of the engine's end",
        _ENGINE, "        for request in requests:\n            _send(request, None)\n        for command",
        "        for request in requests[1:]:\n            _send(request, None)\n        for command",
    ),
    Planted(
        "a call is not answered at the engine's end",
        _ENGINE, "commands = [*self._deferred, *self._taken, *self._inbox]", "commands = [*self._taken, *self._inbox]",
    ),
    Planted(
        "a failing sink ends nobody's request",
        _ENGINE, "                self.abort(request.parent_id)\n", "                pass\n",
    ),
    Planted(
        "a deferred request that was aborted is started",
        _ENGINE, "                if not request.finished:  # not aborted", "                if True:  # not aborted",
    ),
    Planted("a request ends a token before its limit", _REQUEST, "if num_tokens >= self.limit:", "if num_tokens >= self.limit - 1:"),
    Planted(
        "a grammar is asked before all tokens are read",
        _REQUEST, "            self.schedulable_until = min(self.limit, num_tokens + 1)\n",
        "            self.schedulable_until = self.limit\n",
    ),
    Planted(
        "drafts that a grammar forbids are verified",
        _SCHEDULER, "drafts = drafts[: request.grammar.num_allowed(drafts)]", "pass",
    ),
    Planted(
        "the connector does not hear of a preemption",
        _TRANSFERS, "        self._preempted.append(request.kv_transfer_id)\n", "",
    ),
    Planted(
        "a block whose load failed counts as loaded",
        _TRANSFERS, "if block_id in output.invalid_block_ids:", "if False:",
    ),
    Planted(
        "blocks are written while they are loaded, after an abort",
        _SCHEDULER, "if request.block_ids and not self.transfers.is_loading(request):", "if request.block_ids:",
    ),
    Planted("a token that is none is taken", _REQUEST, "        if token_id < 0:\n", "        if False:\n"),
    Planted(
        "cached blocks outlive a sleep",
        _CONTROL, "    if keeps_weights:\n        scheduler.reset_prefix_cache()", "    if keeps_weights:\n        pass",
    ),
    Planted(
        "an engine that sleeps takes requests",
        _ENGINE, "            if self._refusal is not None:\n", "            if False:\n",
    ),
    Planted(
        "an adapter's blocks are found by others",
        _BLOCKS, "return blake2b(adapter_key, digest_size=16).digest()", "return blake2b(b'', digest_size=16).digest()",
    ),
    Planted(
        "more adapters run than have a place",
        _SCHEDULER, "return len(keys | {request.adapter.key}) <= self.max_loras", "return True",
    ),
    Planted("accepted drafts go on after a stop token", _SCHEDULER, "in result.further and request.finish_reason is None", "in result.further"),
)  # fmt: skip
