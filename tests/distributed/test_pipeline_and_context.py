"""V1's tokens are transformers' own where layers, prompts or experts are spread over ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.parallel import fills_stages
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v1.parallel_families import PIPELINE_PARALLEL_FAMILIES, TENSOR_PARALLEL_FAMILIES
from dodona.runners.v1.pipeline_parallel import stage_layers, take_stage
from tests.distributed.test_tensor_parallel import NEW_TOKENS, compare, prompts
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.thread_ranks import run_ranks
from tests.support.tiny_models import make_model

PP, PCP, TP = "pipeline_parallel_size", "prefill_context_parallel_size", "tensor_parallel_size"
HARD = {"budget": 13, "preempt_every": 5, "prefix_caching": True}
"""Chunks, preemption and cached prefixes."""


def check(tiny_models, reference, family, *, driver=None, rounds=1, **sizes):
    path = tiny_models.path(family)
    found, drivers = generate_on_ranks(
        path, prompts(), NEW_TOKENS, driver=driver or {"budget": 16}, rounds=rounds, **sizes
    )
    compare(path, reference, found, prompts(), NEW_TOKENS)
    return drivers


BY_ARCHITECTURE = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2-sliding",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3nForCausalLM": "gemma3n",
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2-moe",
    "Qwen3MoeForCausalLM": "qwen3-moe",
    "DeepseekV3ForCausalLM": "deepseek-v3",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo3",
    "CohereForCausalLM": "cohere",
    "Cohere2ForCausalLM": "cohere2",
    "GraniteForCausalLM": "granite",
    "Glm4ForCausalLM": "glm4",
    "SmolLM3ForCausalLM": "smollm3",
    "Starcoder2ForCausalLM": "starcoder2",
    "GPTNeoXForCausalLM": "gpt-neox",
    "Llama4ForCausalLM": "llama4",
    "Phi3ForCausalLM": "phi3",
    "GptOssForCausalLM": "gpt-oss",
    "Qwen3NextForCausalLM": "qwen3-next",
    "OlmoHybridForCausalLM": "olmo-hybrid",
}
"""Families of tiny models; `test_families` has every architecture."""


@pytest.mark.parametrize("architecture", BY_ARCHITECTURE)
def test_layers_and_stages_of_every_architecture(tiny_models, reference, architecture):
    sizes = {
        TP: 1 + (architecture in TENSOR_PARALLEL_FAMILIES),
        PP: 1 + (architecture in PIPELINE_PARALLEL_FAMILIES),
    }
    check(tiny_models, reference, BY_ARCHITECTURE[architecture], **sizes)


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma2", "gpt-oss", "llama4", "stablelm"])
def test_prompts_are_shared(tiny_models, reference, family):
    check(tiny_models, reference, family, driver=HARD, rounds=2, **{PCP: 2})


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v3"])
def test_experts_are_spread(tiny_models, reference, family):
    check(tiny_models, reference, family, **{TP: 2, "enable_expert_parallel": True})


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {PP: 2}),
        ("gemma2", {PP: 3, "num_layers": 3}),
        ("gemma3n", {PP: 3}),
        ("gemma3n", {TP: 2, PP: 2}),
        ("mixtral", {TP: 2, PCP: 2, "enable_expert_parallel": True}),
        ("llama", {PP: 2, PCP: 2}),
        ("qwen3", {TP: 2, PP: 2}),
        ("mixtral", {TP: 2, PP: 2, PCP: 2}),
        ("mistral", {PCP: 4}),
    ],
    ids=str,
)
def test_pairs_with_chunks_preemption_and_prefix_caching(tiny_models, reference, family, sizes):
    layers = {"num_hidden_layers": sizes["num_layers"]} if "num_layers" in sizes else {}
    path = tiny_models.path(family, **layers)
    flat = {name: value for name, value in sizes.items() if name != "num_layers"}
    todo = [*prompts(), [*prompts()[2][:17], 7, 8, 9]]
    counts = (*NEW_TOKENS, 8)
    found, drivers = generate_on_ranks(path, todo, counts, driver=HARD, rounds=2, **flat)
    compare(path, reference, found, todo, counts)
    assert drivers[0].preemptions
    assert drivers[0].prefix_hits


def test_a_stage_holds_its_layers() -> None:
    def held(mesh):
        model = make_model("llama", num_hidden_layers=3)
        take_stage(model, mesh.pipeline)
        return {name.split(".")[2] for name, _ in model.named_parameters() if ".layers." in name}, {
            name for name, _ in model.named_parameters() if ".layers." not in name
        }

    first, last = run_ranks(RankSizes(2, 1, 1), held)
    assert first == ({"0", "1"}, {"model.embed_tokens.weight", "model.norm.weight"})
    assert last == ({"2"}, {"model.norm.weight", "lm_head.weight"})


GEMMA_3N = (["sliding_attention"] * 4 + ["full_attention"]) * 7


@pytest.mark.parametrize(
    ("layer_types", "reusing", "stages", "counts"),
    [
        (GEMMA_3N, 0, 4, [9, 9, 9, 8]),
        (GEMMA_3N, 15, 2, [18, 17]),  # layers 18 and 19 are the last of their types that have their own
        (GEMMA_3N, 15, 4, [6, 6, 6, 17]),
        (GEMMA_3N[:30], 10, 2, [15, 15]),
        (None, 3, 3, [2, 2, 4]),
        (["full_attention"] * 6 + ["sliding_attention"] + ["full_attention"], 1, 4, [2, 2, 1, 3]),
    ],
)
def test_layers_that_share_keys_and_values_are_on_one_stage(layer_types, reusing, stages, counts):
    count = 8 if layer_types is None else len(layer_types)
    config = SimpleNamespace(layer_types=layer_types, num_kv_shared_layers=reusing)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: config))
    ranks = [SimpleNamespace(rank=rank, size=stages) for rank in range(stages)]
    held = [stage_layers(model, count, rank) for rank in ranks]
    assert [len(layers) for layers in held] == counts
    assert [index for layers in held for index in layers] == list(range(count))


def test_too_few_layers_before_those_that_share_are_refused() -> None:
    raw = {**make_model("gemma3n").config.to_dict(), "architectures": ["Gemma3nForCausalLM"]}
    model = ModelInfo.from_mapping(json.loads(json.dumps(raw, default=str)))
    config = EngineConfig.from_flat("model", pipeline_parallel_size=4)
    assert fills_stages(config, model) is False
    assert fills_stages(EngineConfig.from_flat("model", pipeline_parallel_size=3), model) is True
    with pytest.raises(UnsupportedConfiguration, match="leaves 2 layers for 3 stages"):
        run_ranks(RankSizes(4, 1, 1), lambda mesh: take_stage(make_model("gemma3n"), mesh.pipeline))


def test_more_stages_than_layers_are_refused_by_name():
    with pytest.raises(UnsupportedConfiguration, match="2 layers for 3 stages"):
        run_ranks(RankSizes(3, 1, 1), lambda mesh: take_stage(make_model("llama"), mesh.pipeline))
