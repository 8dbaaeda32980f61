"""V2's tokens under tensor parallelism are transformers' own, and one rank's; all ranks draw the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.kv_transfer.factory import plan_kv_transfer
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2 import ranks as v2_ranks
from dodona.runners.v2.runner import V2Runner
from tests.distributed.v2_ranks import on_ranks, use_threads
from tests.support.thread_ranks import run_ranks
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import storage
from tests.v2.drive import EagerGraphs, generate, make_runner, set_graphs
from tests.v2.test_device_drafts import TARGET, Head
from tests.v2.test_greedy_tokens import Reference, prompts_of
from tests.v2.test_kv_transfer import scheduler_of

SEEDED = [
    SamplingParams(temperature=0.8, seed=11, ignore_eos=True),
    SamplingParams(temperature=1.2, top_k=5, top_p=0.9, seed=12, ignore_eos=True),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, seed=13, logprobs=2, ignore_eos=True),
]


def equal_on_ranks(found):
    for each in found[1:]:
        assert each == found[0]
    return found[0]


ONE_LAYER = {"head_dim": 16, "num_hidden_layers": 1}
"""The interpreter takes a fifth of a second for a layer of a step."""


def test_chunks_preemption_and_prefix_caching(tiny_models):
    path = tiny_models.path("qwen3", **ONE_LAYER)
    prompts = prompts_of(15, 14)

    def work(runner):
        run = generate(runner, prompts, max_tokens=4, num_blocks=3, enable_prefix_caching=True)
        assert run.scheduler.num_preemptions
        longer = [[*run.requests[1].token_ids, 5]]
        again = generate(runner, longer, max_tokens=2, enable_prefix_caching=True, scheduler=run.scheduler)
        assert again.requests[0].num_cached_tokens == 16
        return run.outputs, longer, again.outputs

    settings = {"num_blocks": 3, "max_num_batched_tokens": 12, "tensor_parallel_size": 2}
    outputs, longer, more = equal_on_ranks(on_ranks(path, work, **settings))
    reference = Reference(path)
    reference.check(prompts, outputs, max_tokens=4)
    reference.check(longer, more, max_tokens=2)


@pytest.mark.parametrize(("family", "ranks"), [("llama", 4), ("mistral", 2)])
def test_families_and_numbers_of_ranks(tiny_models, family, ranks):
    path = tiny_models.path(family, tie_word_embeddings=True, **ONE_LAYER)
    prompts = prompts_of(20)

    def work(runner):
        kv_heads = runner.get_kv_cache_spec().layers[0].num_kv_heads
        return generate(runner, prompts, max_tokens=2).outputs, kv_heads

    outputs, kv_heads = equal_on_ranks(on_ranks(path, work, tensor_parallel_size=ranks))
    assert kv_heads == 1  # two heads: each rank has one, and of four ranks neighbours share it
    Reference(path).check(prompts, outputs, max_tokens=2)


def test_seeded_draws_and_log_probabilities_are_those_of_one_rank(tiny_models):
    path = tiny_models.path("qwen3", **ONE_LAYER)
    prompts = prompts_of(4, 20, 9)

    def work(runner):
        run = generate(runner, prompts, max_tokens=3, params=SEEDED)
        return run.outputs, [[e.token_ids for e in r.logprobs] for r in run.requests]

    outputs, entries = equal_on_ranks(on_ranks(path, work, tensor_parallel_size=2))
    assert [outputs, entries] == [*work(make_runner(path))]


def test_steps_of_fixed_form(tiny_models):
    path = tiny_models.path("qwen3", **ONE_LAYER)
    prompts = prompts_of(5, 18)

    def work(runner):
        graphs = EagerGraphs(runner.ready.steps, decodes=(1, 2, 4), prompts=(16, 32))
        set_graphs(runner, graphs)
        outputs = generate(runner, prompts, max_tokens=[2, 3]).outputs
        return outputs, [tuple(step) for step in graphs.replayed]

    outputs, replayed = equal_on_ranks(on_ranks(path, work, tensor_parallel_size=2))
    assert replayed
    Reference(path).check(prompts[1:], outputs[1:], max_tokens=3)


def test_reload_and_sleep(tiny_models):
    path = tiny_models.path("llama", **ONE_LAYER)
    prompts = prompts_of(6)

    def work(runner):
        first = generate(runner, prompts, max_tokens=1).outputs
        with pytest.raises(UnsupportedConfiguration, match="use reload_weights"):
            runner.load_weights([])
        for view in runner._all_weight_views().views.values():
            view.zero_()
        runner.reload_weights()
        again = generate(runner, prompts, max_tokens=1).outputs
        runner.sleep(level=2)
        runner.wake_up()
        assert runner.missing_weights()
        runner.reload_weights()
        assert not runner.missing_weights()
        return first, again, generate(runner, prompts, max_tokens=1).outputs

    first, again, awake = equal_on_ranks(on_ranks(path, work, tensor_parallel_size=2))
    assert first == again == awake


def test_ranks_that_compute_other_bits_do_not_start(tiny_models, monkeypatch):
    path = tiny_models.path("llama", **ONE_LAYER)
    load = V2Runner.load_model

    def differ(self):
        load(self)
        if self._group.rank == 1:
            self.loaded.model.weights.final_norm.add_(1e-6)

    monkeypatch.setattr(V2Runner, "load_model", differ)
    with pytest.raises(ConfigError, match=r"ranks \[1\] compute other logits than rank 0"):
        on_ranks(path, lambda _: None, tensor_parallel_size=2)


def test_ranks_on_unlike_devices_do_not_start(monkeypatch):
    descriptions = iter(["NVIDIA H200, 132 SMs", "NVIDIA H100, 132 SMs"])
    monkeypatch.setattr(v2_ranks, "_description", lambda _: next(descriptions))
    with pytest.raises(ConfigError, match="rank 1: NVIDIA H"):
        run_ranks(
            RankSizes(1, 1, 2), lambda mesh: v2_ranks.check_equal_devices(mesh.tensor, torch.device("cpu"))
        )


@pytest.mark.gpu
def test_bfloat16(tiny_models):
    """Decodes of one row and of a few have kernels of their own; the first rank's part has the residual."""
    sizes = {"head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.06}
    path = tiny_models.path("qwen3", **sizes)
    prompts = prompts_of(40, 7, 23)

    def work(runner):
        return [generate(runner, some, max_tokens=12).outputs for some in (prompts[:1], prompts)]

    outputs = equal_on_ranks(on_ranks(path, work, dtype="bfloat16", tensor_parallel_size=2))
    for some, found in zip((prompts[:1], prompts), outputs, strict=True):
        reference = Reference(path, torch.bfloat16)
        reference.check(some, found, max_tokens=12, half_precision=True, max_ties=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py has it by NCCL")
def test_two_processes_under_the_whole_engine(tiny_models, monkeypatch):
    """By gloo; the warm-up has other tests."""
    monkeypatch.setattr("dodona.runners.startup.warm_up", lambda runner: None)
    path = tiny_models.path("qwen3", **ONE_LAYER)
    config = EngineConfig.from_flat(
        str(path), skip_tokenizer_init=True, tensor_parallel_size=2, max_num_seqs=4,
        max_num_batched_tokens=48, max_model_len=128, num_gpu_blocks_override=24,
    )  # fmt: skip
    verdict = select_runner(config, environment=assumed_gpu())
    assert verdict.runner == "v2"
    prompts = prompts_of(3, 60, 17)
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with LLM.from_verdict(verdict) as llm:
        assert llm._client.call_all(lambda runner, _: runner.max_steps_in_flight) == [2]
        stream = llm.stream(prompts[2], SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True))
        next(stream)
        stream.close()  # aborts the request
        outputs = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]
    Reference(path).check(prompts, outputs, max_tokens=4)


SMALL = {
    "block_size": 16, "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 64,
    "max_model_len": 64, "num_gpu_blocks_override": 4, "skip_tokenizer_init": True,
}  # fmt: skip


def engine(path, **flat):
    """An LLM of two ranks that are threads, unless `flat` says otherwise; `use_threads` first."""
    config = EngineConfig.from_flat(str(path), **{"tensor_parallel_size": 2, **SMALL, **flat})
    verdict = select_runner(config, environment=assumed_gpu())
    assert verdict.runner == "v2"
    return LLM.from_verdict(verdict)


GREEDY = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)


def ask(llm, prompt, params=GREEDY):
    """(tokens, how many tokens of the prompt were found)."""
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    return list(output.outputs[0].token_ids), output.num_cached_tokens


@pytest.fixture
def threads(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("ranks that are threads share a CPU")
    monkeypatch.setattr("dodona.runners.startup.warm_up", lambda runner: None)
    use_threads(monkeypatch)


NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
OF_TWO = SamplingParams(temperature=1.0, seed=3, allowed_token_ids=[7, 8], max_tokens=5, ignore_eos=True)
"""So that lookup finds drafts."""


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("flat", "quantized"),
    [
        ({}, None),
        ({"speculative_config": NGRAM}, None),
        ({"speculative_config": NGRAM}, "w4a16"),
    ],
    ids=["plain", "drafts", "drafts-quantized"],
)
def test_blocks_come_back_from_the_host(tiny_models, tmp_path, flat, quantized):
    path = tiny_models.path("qwen3", **ONE_LAYER, intermediate_size=64)
    if quantized is not None:
        quantize_checkpoint(path, tmp_path / "model", quantized)
        path = tmp_path / "model"
    prompt, other = [7, 8] * 9 + [7], prompts_of(19, 58)[1]
    params = OF_TWO if flat else GREEDY
    alone = generate(make_runner(path, **SMALL), [prompt], max_tokens=params.max_tokens, params=params)
    with engine(path, kv_offloading_size=0.001, **flat) as llm:
        assert ask(llm, prompt, params) == (alone.outputs[0], 0)
        ask(llm, other)  # takes all blocks
        assert ask(llm, prompt, params) == (alone.outputs[0], 16)
        assert bool(llm.draft_stats().num_draft_tokens) == bool(flat)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("connector", [storage, partial(memory, role="kv_both")], ids=["storage", "memory"])
def test_one_rank_and_two_find_each_others_blocks(tiny_models, tmp_path, connector):
    path, todo = tiny_models.path("qwen3", **ONE_LAYER), prompts_of(19, 21)
    shared = connector(tmp_path / "kv")
    runner = make_runner(path, num_blocks=4, **SMALL, **shared)
    plan = plan_kv_transfer(runner.config, runner.name).scheduler_connector(runner)
    scheduler = scheduler_of(runner, plan)

    def on_one(prompt):
        found = generate(runner, [prompt], max_tokens=2, scheduler=scheduler)
        return list(found.outputs[0]), found.requests[0].num_cached_tokens

    with engine(path, **shared) as llm:
        tokens, found = ask(llm, todo[0])
        if connector is not storage:
            assert (found, on_one(todo[0])) == (0, (tokens, 16))
        tokens, found = on_one(todo[1])
        if connector is storage:
            runner.shutdown()  # all is written then
        assert (found, ask(llm, todo[1])) == (0, (tokens, 16))
    runner.shutdown()
    plan.shutdown()
    if connector is storage:
        assert len(list(tmp_path.rglob("*.parts/*.safetensors"))) == 2


@pytest.mark.parametrize("method", ["ngram", "eagle3"])
def test_drafts_are_those_of_one_rank(tiny_models, tmp_path, method):
    """Each rank drafts for itself, the same; the first one's drafts count."""
    path, prompts = tiny_models.path("qwen3", **TARGET), [[5, 6, 7, 8] * 2]
    drafts = NGRAM
    if method == "eagle3":
        drafts = {**Head("eagle3", path, tmp_path).speculative, "num_speculative_tokens": 2}

    def work(runner):
        params = SamplingParams(temperature=1.0, seed=3, allowed_token_ids=[7, 8], ignore_eos=True)
        run = generate(runner, prompts, max_tokens=3, params=params)
        return run.outputs, run.scheduler.draft_stats

    found = equal_on_ranks(on_ranks(path, work, tensor_parallel_size=2, speculative_config=drafts))
    assert found == work(make_runner(path, speculative_config=drafts))
    assert found[1].num_draft_tokens


@pytest.mark.usefixtures("threads")
def test_replicas_of_two_ranks_that_draft(tiny_models):
    path = tiny_models.path("llama", **ONE_LAYER)
    prompts = prompts_of(9, 5)
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    drafts = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 1}
    with engine(path, data_parallel_size=2, speculative_config=drafts) as llm:
        outputs = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]
        assert min(llm._client.call_all(lambda _, scheduler: scheduler._num_steps)) > 0
        assert llm.draft_stats().num_accepted_tokens
    Reference(path).check(prompts, outputs, max_tokens=3)
