"""With a KV connector, every output is that of its solo run, whatever is loaded, lost, preempted or
aborted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.runners.kv_transfer.block_transfers import BlockTransferScheduler
from dodona.runners.kv_transfer.offloading.slots import HostSlots
from tests.engine.test_scheduler import VOCAB, Job, assert_solo, make_request, scenarios
from tests.support.fake_kv_worker import FakeKVWorker
from tests.support.fake_runner import solo_run
from tests.support.sync_engine import SyncEngine


def offloading_engine(
    *, num_slots: int = 64, seed: int = 0, most_steps: int = 3, fault_rate: float = 0.0, **sizes
):
    """An engine whose blocks go to `num_slots` slots, and its worker."""
    connector = BlockTransferScheduler(HostSlots(num_slots), block_size=sizes.get("block_size", 4))
    engine = SyncEngine(**sizes, kv_connector=connector)
    worker = FakeKVWorker(engine.runner, seed=seed, most_steps=most_steps, fault_rate=fault_rate)
    engine.runner.kv_connector = worker
    return engine, worker


def generate(engine: SyncEngine, *prompts: list[int], **params: object):
    requests = [make_request(str(i), prompt, **params) for i, prompt in enumerate(prompts)]
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    engine.check_idle()
    for request in requests:
        assert_solo(request)
    return requests


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.integers(1, 40), st.integers(0, 4), st.sampled_from([0.0, 0.5]), st.integers(0, 9))
def test_every_output_is_that_of_its_solo_run(
    scenario: tuple[dict[str, object], int, list[Job]], num_slots, most_steps, fault_rate, seed
) -> None:
    sizes, max_model_len, todo = scenario
    # With a connector, no blocks are given back behind a window.
    whole = -(-max_model_len // sizes["block_size"])
    sizes = {**sizes, "windows": (None,), "num_blocks": max(whole, sizes["num_blocks"])}
    engine, _ = offloading_engine(
        num_slots=num_slots,
        most_steps=most_steps,
        fault_rate=fault_rate,
        seed=seed,
        vocab_size=VOCAB,
        **sizes,
    )
    for turn in range(2):  # the second time, what the first one left on the host is found
        requests = [
            make_request(f"{turn}-{i}", job.prompt, max_model_len, job.seed, **job.params)
            for i, job in enumerate(todo)
        ]
        for now in range(45):
            for request, job in zip(requests, todo, strict=True):
                if job.arrives == now:
                    engine.scheduler.add(request)
                if job.aborted == now and now >= job.arrives and not request.finished:
                    engine.scheduler.abort(request)
            engine.step()
        engine.run()
        engine.check_idle()
        for request in requests:
            if request.finish_reason != "abort":
                assert_solo(request, max_model_len)
                continue
            expected, _ = solo_run(
                request.token_ids[: request.num_prompt_tokens],
                request.params,
                vocab_size=VOCAB,
                max_model_len=max_model_len,
                seed=request.seed,
                eos=frozenset({0}),
            )
            output = request.token_ids[request.num_prompt_tokens :]
            assert output == expected[: len(output)]


PROMPT = list(range(1, 22))
"""Five full blocks of four, and one token."""


def displace(engine: SyncEngine) -> None:
    """Let the cache forget all it knew."""
    num_blocks = engine.scheduler.blocks.num_blocks
    rng = random.Random(num_blocks)
    tokens = [rng.randrange(30, 90) for _ in range(num_blocks * 4 - 1)]
    generate(engine, tokens, max_tokens=1)


def test_blocks_that_left_the_cache_come_back_from_the_host() -> None:
    engine, worker = offloading_engine(num_blocks=8)
    (first,) = generate(engine, PROMPT, max_tokens=2)
    assert first.num_cached_tokens == 0
    displace(engine)
    before = worker.num_loaded_blocks
    (again,) = generate(engine, PROMPT, max_tokens=2)
    assert again.num_cached_tokens == 20
    assert worker.num_loaded_blocks - before == 5


def test_what_the_cache_has_is_not_loaded() -> None:
    engine, worker = offloading_engine(num_blocks=32)
    generate(engine, PROMPT, max_tokens=2)
    (again,) = generate(engine, PROMPT, max_tokens=2)
    assert again.num_cached_tokens == 20
    assert worker.num_loaded_blocks == 0


def test_requests_with_one_prefix_load_it_once() -> None:
    engine, worker = offloading_engine(num_blocks=20, max_num_batched_tokens=64)
    generate(engine, PROMPT, max_tokens=2)
    displace(engine)
    before = worker.num_loaded_blocks
    both = generate(engine, PROMPT, [*PROMPT, 5], max_tokens=2)
    assert worker.num_loaded_blocks - before == 5
    assert [request.num_cached_tokens for request in both] == [20, 20]


def test_a_block_whose_load_fails_is_computed_with_all_that_follow() -> None:
    engine, worker = offloading_engine(num_blocks=8, fault_rate=1.0, most_steps=0)
    generate(engine, PROMPT, max_tokens=2)
    displace(engine)
    (again,) = generate(engine, PROMPT, max_tokens=2)
    assert worker.num_faults == 1
    assert again.num_cached_tokens < 20


def test_others_run_while_a_request_waits_for_its_kv() -> None:
    engine, _ = offloading_engine(num_blocks=16, most_steps=0)
    generate(engine, PROMPT, max_tokens=2)
    displace(engine)
    waits, runs = make_request("waits", PROMPT, max_tokens=2), make_request("runs", [7], max_tokens=3)
    engine.scheduler.add(waits)
    engine.scheduler.add(runs)
    engine.step()
    assert [request.request_id for request in engine.scheduler.running] == ["runs"]
    assert engine.scheduler.transfers.is_loading(waits) or engine.scheduler.loaded[0] is waits
    engine.run()
    assert_solo(waits)
    assert_solo(runs)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_request_that_is_aborted_while_it_is_loaded_keeps_its_blocks_until_then(steps: int) -> None:
    engine, worker = offloading_engine(num_blocks=8)
    generate(engine, PROMPT, max_tokens=2)
    displace(engine)
    worker.rng = random.Random()
    worker.rng.randint = lambda *_: 2  # type: ignore[method-assign]
    request = make_request("aborted", PROMPT, max_tokens=2)
    engine.scheduler.add(request)
    engine.step()
    for _ in range(steps):
        engine.step()
    engine.scheduler.abort(request)
    engine.check()
    assert engine.scheduler.num_unfinished == 0
    assert engine.scheduler.blocks.num_free == 2
    engine.run()
    engine.check_idle()
    generate(engine, PROMPT, max_tokens=2)


def test_nothing_is_stored_twice_and_old_weights_are_forgotten() -> None:
    engine, worker = offloading_engine(num_blocks=32)
    generate(engine, PROMPT, max_tokens=2)
    stored = len(worker.host)
    generate(engine, PROMPT, max_tokens=2)
    assert len(worker.host) == stored == 5
    engine.runner.reload_weights()
    engine.scheduler.new_weights()
    request = make_request("new", PROMPT, max_tokens=2)
    engine.scheduler.add(request)
    engine.run()
    assert request.num_cached_tokens == 0


def test_prompt_logprobs_are_computed_and_not_loaded() -> None:
    engine, _ = offloading_engine(num_blocks=8)
    generate(engine, PROMPT, max_tokens=2)
    displace(engine)
    (request,) = generate(engine, PROMPT, max_tokens=2, prompt_logprobs=1)
    assert request.num_cached_tokens == 0


def test_the_calls_of_a_step_come_in_their_order() -> None:
    engine, worker = offloading_engine(most_steps=0)
    generate(engine, PROMPT, max_tokens=1)
    first = worker.calls.index("handle_preemptions")
    assert worker.calls[first : first + 7] == [
        "handle_preemptions", "start_load_kv", "wait_for_layer_load 0", "save_kv_layer 0", "wait_for_save",
        "get_finished", "get_block_ids_with_load_errors",
    ]  # fmt: skip


class _Undecided(BlockTransferScheduler):
    """Doesn't know what it has until it was asked three times."""

    asked = 0

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        self.asked += 1
        return (
            (None, False)
            if self.asked < 3
            else super().get_num_new_matched_tokens(request, num_computed_tokens)
        )


def test_a_connector_that_does_not_know_yet_is_asked_again() -> None:
    connector = _Undecided(HostSlots(8), block_size=4)
    engine = SyncEngine(kv_connector=connector)
    engine.runner.kv_connector = FakeKVWorker(engine.runner)
    generate(engine, PROMPT, max_tokens=2)
    assert connector.asked == 3


def test_a_connector_that_loads_within_a_step_is_refused() -> None:
    class Synchronous(BlockTransferScheduler):
        def get_num_new_matched_tokens(self, request, num_computed_tokens):
            return 4, False

    engine = SyncEngine(kv_connector=Synchronous(HostSlots(8), block_size=4))
    engine.scheduler.add(make_request("a", PROMPT))
    with pytest.raises(RuntimeError, match="Synchronous loads within a step"):
        engine.step()


@settings(max_examples=200)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["store", "load", "end", "touch", "clear"]), st.integers(0, 7))),
)
def test_slots_are_those_of_a_plain_lru(num_slots: int, operations: list[tuple[str, int]]) -> None:
    slots = HostSlots(num_slots)
    order: list[bytes] = []  # the one used last comes last
    loading: dict[bytes, int] = {}
    place: dict[bytes, int] = {}
    outdated: set[bytes] = set()
    for operation, number in operations:
        value = bytes([number])
        if operation == "store" and value not in order and value not in loading:
            slot = slots.reserve(value)
            if len(loading) == num_slots:
                assert slot is None
                continue
            if len(order) + len(loading) == num_slots:
                del place[order.pop(0)]
            assert slot is not None
            assert slot not in place.values()
            place[value] = slot
            order.append(value)
        elif operation == "load" and value in order:
            order.remove(value)
            loading[value] = place[value]
            assert slots.begin_load([value]) == [place[value]]
        elif operation == "end" and value in loading:
            slots.end_load([value])
            del loading[value]
            if value in outdated:
                outdated.remove(value)
                del place[value]
            else:
                order.append(value)
        elif operation == "touch" and value in order:
            assert slots.reserve(value) is None
            order.remove(value)
            order.append(value)
        elif operation == "clear":
            slots.clear()
            for each in order:
                del place[each]
            order.clear()
            outdated.update(loading)
        assert len(slots) == len(order) + len(loading)
        for number in range(8):
            each = bytes([number])
            assert slots.find(each) is (None if each in loading else each in order)
