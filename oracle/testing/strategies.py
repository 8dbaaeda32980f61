"""Hypothesis strategies and random generators for configurations, environments, models and facts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dodona.oracle.language.conditions import comparisons
from dodona.oracle.language.facts import UNKNOWN, FactSpec, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import bundled_rulebook

FactMapping = dict[str, FactValue]

_INTERESTING_INTS = (0, 1, 2, 3, 7, 8, 16, 64, 127, 128, 4096, 2**31, 2**53 - 1, 2**53, 2**63)
_STRANGE_TEXTS = (
    "",
    "other",
    "Ünïcode ✓",
    "with space",
    "1e-05",
    "true",
    "x" * 2000,
    '"quoted"\\',
    "{brace}",
    "\x00",
)


def candidate_values(spec: FactSpec, book: RuleBook, *, unknown: bool = True) -> tuple[FactValue, ...]:
    """Values of a fact that between them reach both sides of every comparison of `book`, and strange ones."""
    constants: list[bool | int | str] = []
    for rule in book.rules:
        for comparison in comparisons(rule.when):
            if comparison.fact == spec.name and comparison.op != "is_set":
                value = comparison.value
                constants.extend(value if isinstance(value, tuple) else (value,))
    values: list[FactValue] = []
    if spec.type == "bool":
        values += [True, False]
    elif spec.type == "int":
        numbers = {n for c in constants if isinstance(c, int) for n in (c - 1, c, c + 1)} | set(
            _INTERESTING_INTS
        )
        low = min(numbers) if spec.minimum is None else spec.minimum
        high = max(numbers) if spec.maximum is None else spec.maximum
        values += sorted({n for n in numbers if low <= n <= high} | {low})
    else:
        texts = [str(c) for c in constants]
        others = [str(v) for v in spec.domain] if spec.domain is not None else list(_STRANGE_TEXTS)
        pool = list(dict.fromkeys([*texts, *others]))
        if spec.type == "str":
            values += pool
        else:
            values += [
                (),
                *((text,) for text in pool),
                tuple(pool[:2]),
                tuple(reversed(pool[:3])),
                tuple(pool),
            ]
    if spec.nullable:
        values.append(None)
    if unknown:
        values.append(UNKNOWN)
    return tuple(values)


class RandomFacts:
    """Random facts of a book, without hypothesis: thousands a second. Equal seeds give equal facts."""

    def __init__(self, book: RuleBook, seed: int, *, unknown: bool = True) -> None:
        self._random = random.Random(seed)
        self._candidates = {
            name: candidate_values(book.facts[name], book, unknown=False) for name in sorted(book.facts)
        }
        self._unknown = unknown

    def __call__(self) -> FactMapping:
        """The next facts. About half of the draws know all of them."""
        rng = self._random
        facts: FactMapping = {
            name: values[int(rng.random() * len(values))] for name, values in self._candidates.items()
        }
        if self._unknown and rng.random() < 0.5:
            for name in rng.sample(sorted(facts), k=rng.randint(1, 4)):
                facts[name] = UNKNOWN
        return facts


def facts(book: RuleBook | None = None, *, unknown: bool = True) -> SearchStrategy[FactMapping]:
    """All registered facts, with values around what `book` (None: dodona.yaml) compares them with."""
    chosen = bundled_rulebook("dodona") if book is None else book
    return st.fixed_dictionaries(
        {
            name: st.sampled_from(candidate_values(spec, chosen, unknown=unknown))
            for name, spec in chosen.facts.items()
        }
    )


def environments(
    *, override: bool = True, runners: Sequence[str] = ("v1", "v2")
) -> SearchStrategy[Environment]:
    """Machines: with and without a GPU, Triton, and (unless `override` is false) a forced runner."""
    overrides = st.sampled_from([None, None, *sorted(runners)]) if override else st.none()
    packages = st.sampled_from(
        [
            {},
            {"transformers": "5.17.0", "ray": None, "bitsandbytes": "0.50.2", "accelerate": None},
            {"transformers": "5.24.0", "ray": "2.60.0", "torchao": None},
        ]
    )
    cuda = st.builds(
        Environment,
        has_triton=st.booleans(),
        platform=st.just("cuda"),
        override=overrides,
        compute_capability=st.sampled_from([70, 75, 80, 86, 89, 90, 100, 120]),
        device_count=st.sampled_from([1, 1, 2, 8]),
        logitsproc_plugins=st.booleans(),
        packages=packages,
        ray_cluster=st.booleans(),
    )
    other = st.builds(
        Environment,
        has_triton=st.booleans(),
        platform=st.sampled_from(["cpu", "rocm", "xpu", "tpu", "unspecified"]),
        override=overrides,
        logitsproc_plugins=st.booleans(),
        packages=packages,
        ray_cluster=st.booleans(),
    )
    return st.one_of(cuda, other)


def _optional(fields: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict(fields))


_SIZES = st.sampled_from([1, 1, 1, 2, 4])
_RARELY = st.sampled_from([False, False, False, True])

_SECTIONS: Mapping[str, SearchStrategy[dict[str, Any]]] = {
    "cache_config": _optional(
        {
            "block_size": st.sampled_from([1, 8, 16, 32, 48, 128, 256, 512]),
            "enable_prefix_caching": st.booleans(),
            "cache_dtype": st.sampled_from(["auto", "fp8", "fp8_e4m3", "bfloat16"]),
            "kv_offloading_size": st.sampled_from([None, 0.0, 0.5, 8.0]),
            "kv_offloading_backend": st.sampled_from(["native", "lmcache"]),
            "num_gpu_blocks_override": st.sampled_from([None, 1, 64]),
        }
    ),
    "parallel_config": _optional(
        {
            "tensor_parallel_size": _SIZES,
            "pipeline_parallel_size": _SIZES,
            "data_parallel_size": _SIZES,
            "data_parallel_backend": st.sampled_from(["mp", "mp", "ray"]),
            "data_parallel_rank": st.sampled_from([None, None, 0, 1]),
            "data_parallel_external_lb": _RARELY,
            "data_parallel_hybrid_lb": _RARELY,
            "prefill_context_parallel_size": _SIZES,
            "decode_context_parallel_size": _SIZES,
            "enable_expert_parallel": st.booleans(),
            "distributed_executor_backend": st.sampled_from([None, None, "mp", "ray", "uni"]),
        }
    ),
    "scheduler_config": _optional(
        {
            "max_num_batched_tokens": st.sampled_from([None, 256, 8192]),
            "max_num_seqs": st.sampled_from([1, 16, 256]),
            "enable_chunked_prefill": st.booleans(),
        }
    ),
    "device_config": _optional({"device": st.sampled_from(["auto", "cpu", "cuda"])}),
    "load_config": _optional({"load_format": st.sampled_from(["auto", "safetensors", "dummy"])}),
}

_OPTIONAL_SECTIONS: Mapping[str, SearchStrategy[dict[str, Any]]] = {
    "lora_config": _optional({"max_loras": st.integers(1, 8), "max_lora_rank": st.sampled_from([8, 16, 64])}),
    "speculative_config": _optional(
        {
            "method": st.sampled_from(
                [None, "ngram", "eagle", "eagle3", "medusa", "mtp", "draft_model", "dflash"]
            ),
            "model": st.sampled_from([None, "draft"]),
            "num_speculative_tokens": st.sampled_from([None, 1, 4]),
            "parallel_drafting": st.booleans(),
        }
    ),
    "compilation_config": _optional(
        {
            "mode": st.sampled_from(
                [None, 0, 1, 2, 3, "none", "stock_torch_compile", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE"]
            )
        }
    ),
    "kv_transfer_config": _optional(
        {
            "kv_connector": st.sampled_from([None, "NixlConnector", "LMCacheConnectorV1", "MyOwnConnector"]),
            "kv_role": st.sampled_from([None, "kv_producer", "kv_consumer", "kv_both"]),
        }
    ),
    "pooler_config": _optional(
        {
            "pooling_type": st.sampled_from([None, "LAST", "mean"]),
            "use_activation": st.sampled_from([None, True, False]),
            "dimensions": st.sampled_from([None, 8]),
        }
    ),
}


def engine_config_mappings(model: str = "model") -> SearchStrategy[dict[str, Any]]:
    """Mappings that `EngineConfig.from_mapping` takes: any of the sections, each with any of its fields."""
    model_config = st.fixed_dictionaries(
        {"model": st.just(model)},
        optional={
            "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
            "seed": st.integers(0, 2**31),
            "runner": st.sampled_from(["auto", "auto", "generate", "pooling", "draft"]),
            "convert": st.sampled_from(["auto", "auto", "none", "embed", "classify"]),
            "quantization": st.sampled_from([None, None, "fp8", "awq", "gptq"]),
            "enforce_eager": st.booleans(),
            "max_model_len": st.sampled_from([None, 128, 4096]),
        },
    )
    optional = {name: st.one_of(st.none(), fields) for name, fields in _OPTIONAL_SECTIONS.items()}
    return st.fixed_dictionaries({"model_config": model_config}, optional={**_SECTIONS, **optional})


_ARCHITECTURES: Sequence[tuple[str, str]] = (
    ("Qwen3ForCausalLM", "qwen3"),
    ("LlamaForCausalLM", "llama"),
    ("MistralForCausalLM", "mistral"),
    ("Qwen3MoeForCausalLM", "qwen3_moe"),
    ("MixtralForCausalLM", "mixtral"),
    ("Gemma3ForCausalLM", "gemma3_text"),
    ("JambaForCausalLM", "jamba"),
    ("ExaoneForCausalLM", "exaone"),
    ("GPTJForCausalLM", "gptj"),
    ("BertModel", "bert"),
    ("BertForSequenceClassification", "bert"),
    ("Qwen3ForTokenClassification", "qwen3"),
    ("HF_ColBERT", "bert"),
    ("MyOwnForCausalLM", "my_own"),
)


def model_configs() -> SearchStrategy[dict[str, Any]]:
    """Contents of config.json: listed and unlisted architectures, dense and not, with and without
    quantization.
    """
    base = st.sampled_from(_ARCHITECTURES).map(lambda a: {"architectures": [a[0]], "model_type": a[1]})
    shape = st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([256, 512]),
            "num_attention_heads": st.sampled_from([2, 4, 8]),
            "num_key_value_heads": st.sampled_from([1, 2]),
            "num_hidden_layers": st.sampled_from([1, 2]),
            "intermediate_size": st.just(512),
            "vocab_size": st.sampled_from([256, 1000]),
            "max_position_embeddings": st.just(4096),
        },
        optional={
            "head_dim": st.sampled_from([24, 64, 80, 128]),
            "hidden_act": st.sampled_from(["silu", "gelu"]),
            "attention_bias": st.booleans(),
            "mlp_bias": st.booleans(),
            "torch_dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
            "rope_scaling": st.sampled_from(
                [
                    None,
                    {"rope_type": "linear", "factor": 2.0},
                    {"type": "yarn", "factor": 4.0},
                    {
                        "rope_type": "llama3",
                        "factor": 8.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 2048,
                    },
                ]
            ),
            "quantization_config": st.sampled_from(
                [
                    {},
                    {"quant_method": "fp8"},
                    {"quant_method": "gptq"},
                    {"quant_method": "bitsandbytes", "load_in_4bit": True},
                    {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
                ]
            ),
            "sliding_window": st.sampled_from([None, 64]),
        },
    )
    return st.builds(lambda a, b: {**a, **b}, base, shape)


def model_infos() -> SearchStrategy[ModelInfo]:
    """`ModelInfo` of `model_configs()`."""
    return model_configs().map(ModelInfo.from_mapping)
