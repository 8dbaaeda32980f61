"""V1 on a GPU: the same tokens as transformers on a CPU, and memory that is measured there."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from benchmarks.compilations import compilations
from benchmarks.models import read_config
from benchmarks.workloads import MIXED
from dodona import LLM, LoRARequest, SamplingParams
from dodona.runners.device.graphs import StepGraphs, capturing
from dodona.runners.v1.agreement import close
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.fusions import Fusions
from dodona.runners.v1.packed_mixers import packed_forward
from dodona.runners.v1.packed_model import PackedModel
from tests.support.adapters import linear_layers, write_adapter
from tests.support.equal_tokens import EqualTokens
from tests.support.replaced_parts import (
    EXPERTS,
    PACKED_MIXERS,
    QUANTIZED,
    REPLACED,
    check_replaced,
    quantized_experts,
    quantized_layer,
)
from tests.support.tiny_hybrids import HYBRIDS
from tests.support.tiny_models import MAX_LENGTH, make_model
from tests.v1.driver import Driver, make_runner
from tests.v1.test_greedy_tokens import NEW_TOKENS, mixed_prompts

pytestmark = pytest.mark.gpu

FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gpt-oss", "deepseek-v3", "llama4", "qwen3-moe")


EAGER = ("gpt-oss",)
"""Experts in fp32 by torch's grouped product, which reads its offsets on the host, so that no graph can hold
it: transposed weights with biases are no case of the kernels."""
GRAPHS = (*FAMILIES, "gemma3", "qwen2", "phi3", "glm4", "falcon-h1", "lfm2", "mamba", "qwen3-next")


@pytest.mark.parametrize("budget", [64, 7], ids=["", "chunked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(tiny_models, reference, family, budget):
    """Launch by launch."""
    compare(tiny_models.path(family), reference, graphs=False, budget=budget).shutdown()


@pytest.mark.parametrize("family", GRAPHS)
def test_greedy_tokens_by_graphs(tiny_models, reference, family):
    runner = compare(tiny_models.path(family), reference, graphs=True, budget=64)
    captured = runner._on_device.steps.ready.graphs is not None
    runner.shutdown()
    assert captured == (family not in EAGER)


@pytest.mark.parametrize("method", ["ngram", "suffix"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "llama4", "qwen3-moe"])
def test_looked_up_drafts_are_verified_by_graphs(tiny_models, reference, monkeypatch, family, method):
    """Windows, soft caps, chunks and experts; greedy tokens in fp32 are transformers'."""
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    replayed, right = [], StepGraphs.replay

    def replay(self, step):
        replayed.append(step)
        right(self, step)

    monkeypatch.setattr(StepGraphs, "replay", replay)
    path = tiny_models.path(family)
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": MAX_LENGTH, "block_size": 4}
    speculative = {"method": method, "num_speculative_tokens": 3}
    if method == "ngram":
        speculative |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    else:
        speculative["suffix_decoding_max_cached_requests"] = 0
    with LLM(
        str(path), device="cuda", dtype="float32", skip_tokenizer_init=True, num_gpu_blocks_override=160,
        speculative_config=speculative, **settings,
    ) as llm:  # fmt: skip
        replayed.clear()
        prompts = [list(prompt) for prompt in mixed_prompts()]
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        stats = llm.draft_stats()
    assert stats.num_draft_tokens > 0
    # Llama4's random weights repeat nothing, so that none of its drafts is right.
    assert stats.num_accepted_tokens > 0 or family == "llama4"
    assert any(step.verifies for step in replayed)
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for ids, output in zip(prompts, outputs, strict=True):
        equal.compare(ids, plain.generate(ids, 12), list(output.outputs[0].token_ids))
    equal.check()


@pytest.mark.parametrize("budget", [64, 7], ids=["", "chunked"])
@pytest.mark.parametrize("family", ["lfm2", "falcon-h1", "mamba", "qwen3-next"])
def test_greedy_tokens_of_models_with_inner_states(tiny_models, reference, family, budget):
    path = tiny_models.path(family)
    plain = reference(path)
    runner = make_runner(path, device="cuda", dtype="float32", num_blocks=160, max_model_len=MAX_LENGTH)
    driver = Driver(runner, num_blocks=160, budget=budget, preempt_every=5)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in driver.generate(mixed_prompts(), NEW_TOKENS):
        equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()
    runner.shutdown()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", REPLACED)
def test_parts_are_replaced(family, dtype):
    """A part whose trial fails stays as it is, whatever the cause: a kernel that can't run is seen here."""
    check_parts(make_model(family).to("cuda", dtype), REPLACED[family], packs=family != "mamba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantized_layers_are_replaced(scheme, dtype):
    with torch.inference_mode():
        layer = quantized_layer(scheme, 1024, 2048, dtype=dtype, device="cuda")
        assert len(Fusions(layer)) == 1
        x = torch.randn(7, 2048, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
        assert close(type(layer).forward(layer, x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scheme", EXPERTS)
@torch.inference_mode()
def test_quantized_experts_are_replaced(scheme, dtype):
    """And a graph of them serves a routing that it was not captured with."""
    experts = quantized_experts(scheme, hidden=256, inner=128, dtype=dtype, device="cuda")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 256, generator=generator).to("cuda", dtype)
    weights = torch.rand(7, 3, generator=generator).to("cuda", dtype)
    first, second = (torch.rand(7, 4, generator=generator).topk(3).indices.cuda() for _ in range(2))
    expected = type(experts).forward(experts, x, second, weights)
    assert len(Fusions(torch.nn.ModuleDict({"experts": experts}))) == 1
    found = experts(x, second, weights)
    assert close(expected.bfloat16(), found.bfloat16())
    chosen = first.clone()
    with capturing() as graph:
        out = experts(x, chosen, weights)
    chosen.copy_(second)
    graph.replay()
    assert torch.equal(out, found)


@pytest.mark.parametrize("family", PACKED_MIXERS)
def test_mixers_are_packed(family):
    if HYBRIDS[family][0] not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {family}")
    model = PackedModel(make_model(family).requires_grad_(False).to("cuda"))
    assert model.mixers
    assert all(packed_forward(mixer) is not None for mixer in model.mixers)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ("qwen3-0.6b", REPLACED["qwen3"]),
        ("qwen2-1.5b", REPLACED["qwen2"]),
        ("gemma-3-1b", REPLACED["gemma3"]),
        ("qwen3-30b-a3b", REPLACED["qwen3-moe"]),
        ("falcon-h1-1.5b", REPLACED["falcon-h1"]),
    ],
)
def test_parts_of_published_shapes_are_replaced(shape, parts):
    """Two layers of the shapes that benchmarks run, in bf16."""
    config = AutoConfig.for_model(**{**read_config(shape), "num_hidden_layers": 2})
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    check_parts(model.eval(), parts)


def check_parts(model, parts, packs=True):
    """The model's parts are replaced, and so are its mixers where the kernels have their case (`packs`)."""
    packed = PackedModel(model.requires_grad_(False))
    device_model = DeviceModel(packed, 16)
    check_replaced(model, {fusion.module for fusion in device_model.fusions._fusions}, parts)
    assert all((packed_forward(mixer) is not None) == packs for mixer in packed.mixers)


def compare(path, reference, *, graphs, budget):
    """Serve prompts of all kinds in fp32 and compare the tokens with transformers'; returns the runner."""
    plain = reference(path)
    runner = make_runner(path, device="cuda", dtype="float32", num_blocks=160, max_model_len=MAX_LENGTH)
    assert runner.max_steps_in_flight == 2
    if graphs:
        runner.capture_graphs()
    driver = Driver(runner, num_blocks=160, budget=budget, preempt_every=5)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in driver.generate(mixed_prompts(), NEW_TOKENS):
        equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()
    return runner


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_passes_the_self_check(tiny_models, family):
    runner = make_runner(tiny_models.path(family), device="cuda", dtype="bfloat16")
    found = runner._loaded.self_check
    assert found.paged <= found.tolerance
    runner.shutdown()


def test_available_memory_is_that_of_the_device(tiny_models):
    settings = {"device": "cuda", "load_format": "dummy", "max_num_seqs": 4096, "num_blocks": 8}
    path = tiny_models.path("llama", max_position_embeddings=1 << 20)
    half, most = (
        make_runner(path, **settings, gpu_memory_utilization=share).determine_available_memory()
        for share in (0.4, 0.8)
    )
    total = torch.cuda.get_device_properties(0).total_memory
    assert half < 0.4 * total
    assert most - half == pytest.approx(0.4 * total, rel=0.02)


def test_shutdown_gives_memory_back(tiny_models):
    make_runner(tiny_models.path("llama"), device="cuda").shutdown()  # libraries keep their workspaces
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    runner = make_runner(tiny_models.path("llama"), device="cuda", num_blocks=4096)
    assert torch.cuda.memory_allocated() > before
    runner.shutdown()
    assert torch.cuda.memory_allocated() == before


def test_after_a_failed_capture():
    """The stream is the one of before, and random numbers can be drawn."""
    stream, x = torch.cuda.current_stream(), torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError), capturing():
        x.sum().item()  # waits for the device
    assert torch.cuda.current_stream() == stream
    assert torch.isfinite(torch.randn(4, device="cuda")).all()
    with capturing() as graph:
        x.add_(1)
    graph.replay()
    assert x.tolist() == [2.0] * 4
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    "more", [{}, {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}], ids=["", "lora"]
)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe", "falcon-h1"])
def test_nothing_is_compiled_while_requests_wait(tiny_models, tmp_path, family, more):
    """After the start no variant of a kernel is used for the first time, whatever the sizes of steps."""
    path = tiny_models.path(family)
    layers = linear_layers(AutoModelForCausalLM.from_pretrained(path), ["q_proj", "o_proj"])
    settings = {"max_num_seqs": 24, "max_num_batched_tokens": 128, "num_gpu_blocks_override": 300, **more}
    with LLM(str(path), device="cuda", dtype="bfloat16", skip_tokenizer_init=True, **settings) as llm:
        lora = LoRARequest("a", 1, str(write_adapter(tmp_path / "a", layers))) if more else None
        with compilations() as found:
            for count in (1, 2, 3, 9, 24):
                prompts = [[7 + i % 50] * (1 + 13 * i % 150) for i in range(count)]
                params = [SamplingParams(max_tokens=4, **MIXED[i % len(MIXED)]) for i in range(count)]
                llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
        assert not found
