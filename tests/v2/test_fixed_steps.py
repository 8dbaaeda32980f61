"""Steps of fixed form: padding does no harm, whether they are captured or run launch by launch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dodona.runners.device.graphs import LONGEST_PROMPT, FixedSizes, FixedStep, decode_sizes, prompt_sizes
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2 import attention as v2_attention
from dodona.runners.v2.models.dense import DenseModel
from dodona.runners.warm_up import warm_up
from tests.v2.drive import GREEDY, EagerGraphs, generate, make_runner, set_graphs
from tests.v2.test_greedy_tokens import Reference, prompts_of
from tests.v2.test_sampled_tokens import MIXED

RANDOM = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)
FILTERED = SamplingParams(temperature=0.9, top_k=20, seed=6, ignore_eos=True)
SIZES = {
    "head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.06,
    "max_position_embeddings": 512,
}  # fmt: skip
"""Of a model whose roundings don't grow from layer to layer."""


@pytest.mark.parametrize("max_num_seqs", [1, 3, 40, 256, 600])
def test_decode_sizes_hold_every_batch(max_num_seqs):
    sizes = decode_sizes(max_num_seqs)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[0] == 1
    assert sizes[-1] == max_num_seqs
    assert all(b <= max(2 * a, a + 64) for a, b in pairwise(sizes))


@pytest.mark.parametrize("max_num_tokens", [1, 16, 17, 100, 512, 8192])
def test_prompt_sizes_hold_every_short_prompt(max_num_tokens):
    sizes = FixedSizes((1,), prompt_sizes(max_num_tokens))
    longest = min(max_num_tokens, LONGEST_PROMPT)
    assert max(sizes.prompts) == longest
    for n in range(1, longest + 1):
        assert n <= sizes.for_prompt(n) <= max(16, 2 * n)
    assert sizes.for_prompt(longest + 1) is None


def do_step(runner, row, prompt=(), *, blocks=(), computed=0, params=GREEDY):
    """A step of one row by hand: its whole prompt where it has one, else a decode. Returns its token."""
    new = []
    if prompt:
        new = [NewRequest(f"row-{row}", row, prompt, len(prompt), 0, blocks, params, 7)]
    runner.execute_model(
        SchedulerOutput(
            step=0,
            freed_rows=(),
            new_requests=new,
            new_blocks=(),
            rows=[row],
            num_tokens=[len(prompt) or 1],
            num_computed_tokens=[computed],
            samples=[True],
            num_decodes=0 if prompt else 1,
        )
    )
    return runner.sample_tokens().result().token_ids[0]


def kv_of(runner, blocks):
    """[layers, blocks, ...]: what the KV cache holds there."""
    return torch.stack([cache[list(blocks)] for cache in runner.ready.steps.kv_caches])


@pytest.fixture
def poison(monkeypatch):
    """What kernels leave unwritten is not a number, as memory that was never written may be."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("length", "params"), [(1, RANDOM), (9, FILTERED), (15, GREEDY), (16, RANDOM)])
def test_a_padded_prompt_gives_its_tokens_and_spares_others(tiny_models, length, params):
    """The first prompt is longer, so that its slots are those that an earlier step left behind."""
    runner = make_runner(tiny_models.path("qwen3", head_dim=16), max_num_batched_tokens=32)
    first, second = (tuple(prompt) for prompt in prompts_of(30, length))
    blocks, others = (3, 5, 0), (7, 2)
    outputs, caches = [], []
    for graphs in (None, EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(16, 24))):
        set_graphs(runner, graphs)
        for cache in runner.ready.steps.kv_caches:
            cache.zero_()
        tokens = [do_step(runner, 1, first, blocks=blocks)]
        before = kv_of(runner, blocks)
        tokens.append(do_step(runner, 2, second, blocks=others, params=params))
        assert torch.equal(kv_of(runner, blocks), before)
        caches.append(kv_of(runner, range(10)))
        assert not caches[-1][:, [1, 4, 6, 8, 9]].any()
        for i in range(2):
            tokens.append(do_step(runner, 1, computed=30 + i))
            tokens.append(do_step(runner, 2, computed=length + i))
        outputs.append(tokens)
    base_only = params is not FILTERED
    assert graphs.replayed[:2] == [FixedStep(16, base_only, True), FixedStep(1, True)]
    assert outputs[0] == outputs[1]
    torch.testing.assert_close(caches[0], caches[1], rtol=1e-4, atol=1e-4)


def test_lone_prompts_take_the_smallest_size_that_holds_them(tiny_models):
    runner = make_runner(tiny_models.path("llama", head_dim=16))
    lengths = [1, 16, 17, 32, 33]
    params = [GREEDY, RANDOM, *MIXED[2:]]
    expected, sizes = [], []
    for prompt, asked in zip(prompts_of(*lengths), params, strict=False):
        expected.append(generate(runner, [prompt], max_tokens=2, params=asked).outputs)
    graphs = EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(16, 32))
    set_graphs(runner, graphs)
    for prompt, asked, outputs in zip(prompts_of(*lengths), params, expected, strict=False):
        graphs.replayed.clear()
        assert generate(runner, [prompt], max_tokens=2, params=asked).outputs == outputs
        sizes.append([step.size for step in graphs.replayed if step.is_prompt])
    assert sizes == [[16], [16], [32], [32], []]


def test_other_steps_are_no_lone_prompts(tiny_models):
    runner = make_runner(tiny_models.path("llama", head_dim=16), max_num_batched_tokens=24)
    graphs = EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(16, 24))
    set_graphs(runner, graphs)
    asks = SamplingParams(temperature=0.0, prompt_logprobs=1, ignore_eos=True)
    generate(runner, prompts_of(8, 9), max_tokens=3)  # two
    generate(runner, prompts_of(40), max_tokens=3)  # in two chunks, of which the first doesn't sample
    run = generate(runner, prompts_of(20), max_tokens=3, params=asks)
    assert len(run.requests[0].prompt_logprobs) == 19
    prompt = prompts_of(20)[0]
    run = generate(runner, [prompt], max_tokens=1, enable_prefix_caching=True)
    assert [step.is_prompt for step in graphs.replayed].count(True) == 1
    again = generate(
        runner, [prompt], max_tokens=1, enable_prefix_caching=True, scheduler=run.scheduler
    )  # its first block is known
    assert again.requests[0].num_cached_tokens == 16
    assert [step.is_prompt for step in graphs.replayed].count(True) == 1


def test_long_sequences_are_launched_in_their_own_way(tiny_models, monkeypatch):
    """The longest sequence of a step decides, in each step anew; both ways give the same tokens."""
    path = tiny_models.path("qwen3", head_dim=16)
    cases = [((9,), GREEDY), ((3, 10), RANDOM), ((3, 4, 12), RANDOM)]

    def outputs(runner):
        return [
            generate(runner, prompts_of(*lengths), max_tokens=5, params=asked).outputs
            for lengths, asked in cases
        ]

    expected = outputs(make_runner(path))
    monkeypatch.setattr(DenseModel, "long_context", lambda self, size, *, verifies: 11 if size <= 2 else None)
    runner = make_runner(path)
    graphs = EagerGraphs(runner.ready.steps, decodes=(1, 2, 4), prompts=())
    set_graphs(runner, graphs)
    assert outputs(runner) == expected
    assert [(step.size, step.has_long) for step in graphs.replayed] == [
        *[(1, False)] * 2, *[(1, True)] * 2, (2, False), *[(2, True)] * 3, *[(4, False)] * 4
    ]  # fmt: skip


def test_long_sequences_with_drafts(tiny_models, monkeypatch):
    path, prompts = tiny_models.path("qwen3", head_dim=16), prompts_of(6)
    plain = generate(make_runner(path), prompts, max_tokens=9, params=RANDOM)
    monkeypatch.setattr(DenseModel, "long_context", lambda self, size, *, verifies: 9 if verifies else None)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 2}
    runner = make_runner(path, speculative_config=speculative)
    graphs = EagerGraphs(
        runner.ready.steps, decodes=(1,), prompts=(), drafts=(3,), step_drafts=runner.ready.drafts
    )
    set_graphs(runner, graphs)
    assert generate(runner, prompts, max_tokens=9, params=RANDOM).outputs == plain.outputs
    ways = [step.has_long for step in graphs.replayed if step.verifies]
    assert ways == sorted(ways)
    assert set(ways) == {False, True}


def test_steps_over_padding_change_nothing(tiny_models):
    runner = make_runner(tiny_models.path("qwen3", head_dim=16))
    prompt = tuple(prompts_of(20)[0])
    token = do_step(runner, 1, prompt, blocks=(3, 4))
    steps, state = runner.ready.steps, runner.ready.state
    kept = [state.token_ids, state.num_computed, state.block_table, *steps.kv_caches]
    before = [tensor.clone() for tensor in kept]
    for prompts in (True, False):
        steps.set_padding(prompts=prompts)
        for size in (1, 4) if not prompts else (16, 64):
            for samples in (True, False):
                with torch.inference_mode():
                    steps.run(FixedStep(size, samples, prompts))
    steps.forget_runs()
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))
    after = do_step(runner, 1, computed=20)
    fresh = make_runner(tiny_models.path("qwen3", head_dim=16))
    assert [token, after] == [do_step(fresh, 1, prompt, blocks=(3, 4)), do_step(fresh, 1, computed=20)]


def test_host_and_device_count_steps_alike(tiny_models):
    """Tokens come from the slot that the device wrote, after warm-up, profile and steps of every form."""
    runner = make_runner(tiny_models.path("llama", head_dim=16), load=False, max_num_batched_tokens=16)
    runner.load_model()
    runner.determine_available_memory()
    runner.initialize_kv_cache(40)
    warm_up(runner)
    runner.capture_graphs()
    ring = runner.ready.steps._ring
    assert ring.num_slots > runner.max_steps_in_flight
    for params, lengths in ((GREEDY, (5,)), (FILTERED, (3, 1)), (RANDOM, (9, 20))):
        for _ in range(2):
            run = generate(runner, prompts_of(*lengths), max_tokens=3, params=params)
            state = runner.ready.state.token_ids
            assert all(
                request.token_ids in state[:, : len(request.token_ids)].tolist() for request in run.requests
            )
            assert int(ring.turn) == ring._launched


def test_a_step_too_many_is_refused(tiny_models):
    runner = make_runner(tiny_models.path("llama", head_dim=16))
    do_step(runner, 1, tuple(prompts_of(20)[0]), blocks=(3, 4))

    def launch(computed):
        runner.execute_model(SchedulerOutput(0, (), (), (), [1], [1], [computed], [True], 1))
        return runner.sample_tokens()

    pending = [launch(20), launch(21)]
    with pytest.raises(RuntimeError, match="2 steps are under way"):
        launch(22)
    pending.pop(0).result()
    launch(22).result()


@pytest.mark.gpu
@pytest.mark.parametrize(("family", "params"), [("qwen3", RANDOM), ("llama", GREEDY), ("mistral", FILTERED)])
def test_captured_prompts_and_eager_ones_agree(tiny_models, monkeypatch, family, params):
    path = tiny_models.path(family, head_dim=64, max_position_embeddings=1024)
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 1024, "max_model_len": 600}
    captured, eager = (make_runner(path, enforce_eager=e, num_blocks=100, **sizes) for e in (False, True))
    replay, prompt_steps = captured.ready.graphs.replay, []

    def note(step):
        prompt_steps.extend([step.size] * step.is_prompt)
        replay(step)

    monkeypatch.setattr(captured.ready.graphs, "replay", note)
    # Long ones before short ones: what they leave behind must not be seen.
    lengths = [512, 1, 300, 16, 17, 511, 2, 129, 128, 127, 250, 64, 65, 383, 31, 513, 90, 5]
    for prompt in prompts_of(*lengths):
        ours, theirs = (
            generate(runner, [prompt], max_tokens=6, params=params, num_blocks=100).outputs
            for runner in (captured, eager)
        )
        assert ours == theirs, len(prompt)
    assert len(prompt_steps) == sum(length <= LONGEST_PROMPT for length in lengths)
    assert set(prompt_steps) == set(captured.ready.graphs.sizes.prompts)


@pytest.mark.gpu
def test_captured_prompts_in_bfloat16(tiny_models):
    path = tiny_models.path("qwen3", **SIZES)
    runner = make_runner(path, dtype="bfloat16", max_num_batched_tokens=512, max_model_len=512)
    prompts = prompts_of(1, 100, 127, 129, 200, 300)
    outputs = [generate(runner, [prompt], max_tokens=24).outputs[0] for prompt in prompts]
    Reference(path, torch.bfloat16).check(prompts, outputs, max_tokens=24, half_precision=True, max_ties=4)


@pytest.mark.gpu
@pytest.mark.parametrize("drafts", [0, 3])
def test_long_sequences_in_bfloat16(drafts, tiny_models, monkeypatch):
    """Sequences become long on the way: captured steps of both ways, one after the other."""
    monkeypatch.setattr(v2_attention, "most_context", lambda *args, **kwargs: 64)
    path = tiny_models.path("qwen3", **SIZES)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": drafts}
    runner = make_runner(
        path, dtype="bfloat16", max_num_seqs=2, speculative_config=speculative if drafts else None
    )
    graphs, replayed = runner.ready.graphs, []
    replay = graphs.replay
    monkeypatch.setattr(graphs, "replay", lambda step: (replayed.append(step), replay(step)))
    reference = Reference(path, torch.bfloat16)
    for lengths in ((50,), (40, 55), (100, 10)):
        prompts = prompts_of(*lengths)
        outputs = generate(runner, prompts, max_tokens=24).outputs
        reference.check(prompts, outputs, max_tokens=24, half_precision=True, max_ties=4)
    ways = {(step.size, step.has_long) for step in replayed if step.verifies == (drafts > 0)}
    sizes = (4, 8) if drafts else (1, 2)
    assert {(size, has_long) for size in sizes for has_long in (False, True)} <= ways


@pytest.mark.gpu
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("length", [1, 100, 130, 200, 300])
def test_padding_that_is_no_number_stays_padding(tiny_models, length):
    """Attention over tiles reads beyond a prompt's end; what it finds there must be numbers in each layer."""
    runner = make_runner(
        tiny_models.path("qwen3", **SIZES), max_num_batched_tokens=512, max_model_len=512, dtype="bfloat16",
        enforce_eager=True,
    )  # fmt: skip
    prompt = tuple(prompts_of(length)[0])
    logits = []
    for graphs in (None, EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(384,))):
        set_graphs(runner, graphs)
        do_step(runner, 1, prompt, blocks=range(-(-length // 16)))
        logits.append(runner.ready.steps.logits(1).float())
    assert graphs.replayed == [FixedStep(384, True, True)]
    assert (logits[1] - logits[0]).norm() < 0.1 * logits[0].norm()


@pytest.mark.gpu
def test_no_step_waits_for_the_copies_of_those_before(tiny_models, monkeypatch):
    """Copies that take longer than steps: the tokens are still each step's own."""
    runner = make_runner(tiny_models.path("llama", head_dim=32), max_num_seqs=8)
    prompts = prompts_of(4, 9, 17, 30)
    params = [SamplingParams(temperature=1.5, seed=seed, ignore_eos=True) for seed in range(4)]
    expected = generate(runner, prompts, max_tokens=12, params=params, in_flight=1).outputs
    assert all(len(set(output)) > 3 for output in expected)  # steps differ
    copier = runner.ready.copier
    copy, overtaken = copier.copy, []

    def late_copy(tensors):
        with torch.cuda.stream(copier._stream):
            torch.cuda._sleep(50_000_000)
        copies, event = copy(tensors)
        # The stream of steps comes to its end, copies of this step or not.
        torch.cuda.current_stream().synchronize()
        overtaken.append(not event.query())
        return copies, event

    monkeypatch.setattr(copier, "copy", late_copy)
    for prompt_count in (1, 4):
        ran = generate(runner, prompts[:prompt_count], max_tokens=12, params=params[:prompt_count])
        assert ran.outputs == expected[:prompt_count]
    assert all(overtaken)
