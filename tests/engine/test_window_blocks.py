"""Layers with a sliding window: what they keep, against brute force and through the scheduler."""

from __future__ import annotations

import random

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.runners.engine.window_blocks import WindowBlocks, first_visible_block
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import KVCacheSpec, LayerKVSpec
from dodona.runners.limits import resolve_limits, size_kv_cache
from tests.engine.test_limits import MODEL
from tests.engine.test_scheduler import assert_solo, make_request
from tests.support.sync_engine import SyncEngine


@pytest.mark.parametrize("window", [None, 1, 2, 5, 8])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_the_first_visible_block(window: int | None, block_size: int) -> None:
    for position in range(30):
        seen = [p for p in range(position + 1) if window is None or p > position - window]
        assert first_visible_block(window, position, block_size) == seen[0] // block_size


def test_window_blocks_against_a_plain_model_of_them() -> None:
    rng = random.Random(0)
    blocks = WindowBlocks(8, 5, 4)
    users = dict.fromkeys(range(12), 0)
    attached: dict[int, int] = {}
    unused: list[int] = []
    for _ in range(3000):
        block = rng.randrange(12)
        if rng.random() < 0.5:
            if users[block] == 0 and block not in attached and sum(map(bool, users.values())) == 5:
                with pytest.raises(KeyError):
                    WindowBlocks(8, 0, 4).take(block)
                continue
            found = blocks.take(block)
            assert (found is None) == (block in attached)
            if found is not None:
                if len(attached) == 5:  # the one that is unused for the longest makes room
                    assert attached.pop(unused.pop(0)) == found
                assert found not in attached.values()
                attached[block] = found
            elif not users[block]:
                unused.remove(block)
            users[block] += 1
        elif users[block]:
            blocks.drop(block)
            users[block] -= 1
            if not users[block]:
                unused.append(block)
        else:
            with pytest.raises(KeyError):
                blocks.drop(block)
        assert [blocks.num_users(b) for b in users] == list(users.values())
        assert [blocks.has(b) for b in users] == [b in attached for b in users]
        assert blocks.num_used == sum(map(bool, users.values()))
    blocks.reset()
    assert not any(blocks.has(b) or blocks.num_users(b) for b in users)


def used_blocks(engine: SyncEngine) -> int:
    return engine.scheduler.blocks.num_blocks - engine.scheduler.blocks.num_free


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
def test_blocks_behind_the_window_are_free_while_the_request_runs(
    enable_prefix_caching: bool, max_steps_in_flight: int
) -> None:
    sizes = {"enable_prefix_caching": enable_prefix_caching, "max_steps_in_flight": max_steps_in_flight}
    engine = SyncEngine(windows=(10,), num_blocks=40, block_size=4, max_num_seqs=4, **sizes)
    requests = [make_request(str(i), [i + 1] * 5, max_tokens=90, ignore_eos=True) for i in range(4)]
    for request in requests:
        engine.scheduler.add(request)
    most = 0
    while engine.scheduler.num_unfinished:
        engine.step()
        most = max(most, used_blocks(engine))
    # A window of 10 tokens lies in at most 4 blocks; one more was not given back yet. All of each request's
    # 95 tokens would take 24.
    assert most <= 4 * 5
    assert engine.scheduler.num_preemptions == 0
    for request in requests:
        assert_solo(request)
    engine.check_idle()


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_a_prompt_longer_than_all_blocks_passes_through_its_window(enable_prefix_caching: bool) -> None:
    engine = SyncEngine(
        windows=(10,),
        num_blocks=12,
        block_size=4,
        max_num_seqs=2,
        max_num_batched_tokens=16,
        enable_prefix_caching=enable_prefix_caching,
    )
    requests = [make_request(str(i), [i + 1] * 150, max_tokens=30, ignore_eos=True) for i in range(3)]
    requests.append(make_request("3", [1] * 150, max_tokens=5, ignore_eos=True))
    for request in requests:
        engine.scheduler.add(request)
    engine.run()
    for request in requests:
        assert_solo(request)
    engine.check_idle()


def test_window_blocks_are_dropped_while_the_request_runs() -> None:
    engine = SyncEngine(windows=(None, 9, 3), num_blocks=60, block_size=2, max_num_seqs=2)
    requests = [make_request(str(i), [i + 1] * 30, max_tokens=40, ignore_eos=True) for i in range(2)]
    for request in requests:
        engine.scheduler.add(request)
    decoding: list[list[int]] = []
    while engine.scheduler.num_unfinished:
        engine.step()
        if all(r.num_computed_tokens >= 40 for r in engine.scheduler.running):
            decoding.append([group.num_used for group in engine.scheduler.windows.groups])
    assert engine.scheduler.num_preemptions > 0
    assert max(used for used, _ in decoding) <= 2 * 6
    assert max(used for _, used in decoding) <= 2 * 3
    for request in requests:
        assert_solo(request)
    engine.check_idle()


@pytest.mark.parametrize("windows", [(9,), (None, 9)])
def test_a_cached_prefix_needs_only_the_blocks_that_are_seen(windows: tuple[int | None, ...]) -> None:
    engine = SyncEngine(windows=windows, num_blocks=16, block_size=4, max_num_batched_tokens=64)
    scheduler, prompt = engine.scheduler, [*range(1, 41)]

    def run(name: str, tokens: list[int]) -> int | None:
        scheduler.add(request := make_request(name, tokens, max_tokens=1))
        engine.run()
        assert_solo(request)
        return request.num_cached_tokens

    assert run("first", prompt) == 0
    assert run("same", prompt) == 36
    hashes = scheduler._block_hashes(make_request("x", prompt), 9)
    ids = [scheduler.blocks.get(value) for value in hashes]
    if windows[0] is None:
        # The window blocks of the beginning make room: what the queries see is still there.
        group = scheduler.windows.groups[0]
        for block in ids[:6]:
            assert block is not None
            if group.has(block):
                del group._unused[block]
                group._free.append(group._attached.pop(block))
        assert run("again", prompt) == 36
        # Without the last one, the prefix is found up to what ends with the blocks before it.
        block = ids[8]
        assert block is not None
        del group._unused[block]
        group._free.append(group._attached.pop(block))
        assert run("less", prompt) == 32
    else:
        for value, block in zip(hashes[:6], ids, strict=False):
            assert block is not None
            del scheduler.blocks._by_hash[value]
            scheduler.blocks._hashes[block] = None
        assert run("again", prompt) == 36


def test_new_weights_detach_window_blocks() -> None:
    engine = SyncEngine(windows=(None, 9))
    for weights in range(2):
        engine.scheduler.add(request := make_request(str(weights), [*range(1, 21)], max_tokens=1))
        engine.run()
        assert request.num_cached_tokens == 0
        engine.runner.reload_weights()
        engine.scheduler.new_weights()
        assert not any(engine.scheduler.windows.groups[0].has(block) for block in range(32))


LAYERS = (LayerKVSpec(1, 4, 4, 9), LayerKVSpec(2, 4, 4), LayerKVSpec(1, 8, 8, 9), LayerKVSpec(1, 4, 4, 3))


def test_groups_of_layers() -> None:
    apart = KVCacheSpec(LAYERS, 2, 4, windows_apart=True)
    found = [(group.window, group.layers, group.bytes_per_block) for group in apart.groups]
    assert found == [(None, (1,), 128), (9, (0, 2), 192), (3, (3,), 64)]
    assert apart.bytes_per_block == 128
    together = KVCacheSpec(LAYERS, 2, 4)
    assert [(g.window, g.layers, g.bytes_per_block) for g in together.groups] == [(None, (0, 1, 2, 3), 384)]
    sliding = KVCacheSpec(LAYERS[:1] * 2, 2, 4, windows_apart=True)
    assert [(g.window, g.layers) for g in sliding.groups] == [(9, (0, 1))]
    assert KVCacheSpec((), 2, 4).groups == ()
    assert KVCacheSpec((), 2, 4).bytes_per_block == 0


def test_blocks_that_suffice_for_the_longest_sequence() -> None:
    flat = {"max_model_len": 500, "max_num_batched_tokens": 6, "block_size": 2}
    config = EngineConfig.from_flat("m", device="cpu", **flat)
    limits = resolve_limits(config, MODEL)
    sliding, full = KVCacheSpec(LAYERS[:1], 2, 4), KVCacheSpec(LAYERS, 2, 4)
    assert full.most_blocks_per_row(limits) == 250
    enough = sliding.most_blocks_per_row(limits)
    assert enough == 7 + 2  # 8 tokens before a step's 6, and two blocks more

    def size(available: int) -> int:
        return size_kv_cache(
            config,
            limits,
            bytes_per_block=1,
            determine_available_memory=lambda: available,
            most_blocks_per_row=enough,
        ).max_model_len

    assert size(enough) == 500
    with pytest.raises(EngineSetupError, match="less than one sequence of max_model_len=500"):
        size(enough - 1)


@pytest.mark.parametrize("available", [1, 383, 384, 5000, 123_457])
def test_as_many_blocks_as_fit_with_their_window_blocks(available: int) -> None:
    config = EngineConfig.from_flat(
        "m", device="cpu", block_size=2, max_model_len=2, max_num_seqs=3, max_num_batched_tokens=4
    )
    limits = resolve_limits(config, MODEL)
    spec = KVCacheSpec(LAYERS, 2, 4, windows_apart=True)
    most = spec.most_window_blocks(limits)

    def size(count: int) -> int:
        windows = spec.num_window_blocks(count, limits)
        return count * 128 + windows[0] * 192 + windows[1] * 64

    expected = next(count for count in range(10_000) if size(count + 1) > available)

    def found() -> int:
        return size_kv_cache(
            config,
            limits,
            bytes_per_block=spec.bytes_per_block,
            determine_available_memory=lambda: available,
            window_groups=list(zip(most, (192, 64), strict=True)),
        ).num_blocks

    if expected:
        assert found() == expected
    else:
        with pytest.raises(EngineSetupError, match="hold 0 tokens"):
            found()
