"""Settings that no engine starts with are refused by a rule that says what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
QWEN3 = CHECKPOINTS / "qwen3"
CPU = Environment(has_triton=False, platform="cpu", packages={"transformers": "5.24.0"})
HEAD = {"model": str(CHECKPOINTS / "qwen3-peagle")}
STORAGE = {"kv_connector": "SharedStorageConnector", "kv_role": "kv_both"}
ARENA = {"kv_connector": "SharedMemoryConnector", "kv_role": "kv_both"}


def decide(model: Path = QWEN3, **flat: Any) -> Verdict:
    found: Verdict | None
    try:
        found = select_runner(EngineConfig.from_flat(str(model), **flat), environment=CPU)
    except UnsupportedConfiguration as refusal:
        found = refusal.verdict
    assert found is not None
    return found


def speculative(**fields: Any) -> dict[str, Any]:
    return {"speculative_config": fields}


def transfer(fields: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"kv_transfer_config": {**fields, "kv_connector_extra_config": extra}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("speculative-settings", speculative(method="ngram"), "num_speculative_tokens is not set"),
    (
        "speculative-settings",
        speculative(method="ngram", num_speculative_tokens=2, prompt_lookup_max=2, prompt_lookup_min=3),
        "prompt_lookup_min=3 is over prompt_lookup_max=2",
    ),
    ("speculative-settings", speculative(method="suffix", num_speculative_tokens=2), "set it to 0"),
    (
        "speculative-settings",
        speculative(method="ngram", num_speculative_tokens=2, suffix_decoding_max_tree_depth=9),
        "is for method 'suffix', and the method is 'ngram'",
    ),
    (
        "speculative-settings",
        speculative(method="suffix", suffix_decoding_max_cached_requests=0, prompt_lookup_max=2),
        "prompt_lookup_max is for method 'ngram'",
    ),
    (
        "speculative-settings",
        speculative(method="ngram", num_speculative_tokens=2, model=str(QWEN3)),
        "drafts from a request's own tokens; leave it unset",
    ),
    ("speculative-settings", speculative(method="eagle3", num_speculative_tokens=2), "needs a draft"),
    ("speculative-settings", speculative(method="draft_model", num_speculative_tokens=2), "needs a draft"),
    ("speculative-settings", speculative(method="draft_model", model=str(QWEN3)), "num_speculative_tokens"),
    ("speculative-settings", speculative(method="eagle3", **HEAD), "parallel_drafting=true"),
    ("speculative-settings", speculative(method="eagle", **HEAD), "set speculative_config.method='eagle3'"),
    (
        "speculative-settings",
        speculative(method="eagle3", model="/no/such/head", num_speculative_tokens=2),
        "no such directory",
    ),
    (
        "speculative-settings",
        speculative(method="draft_model", model=str(CHECKPOINTS / "lfm2"), num_speculative_tokens=2),
        "can't run this draft model, for inner-states",
    ),
    (
        "speculative-settings",
        speculative(method="draft_model", model=str(CHECKPOINTS / "qwen3-awq"), num_speculative_tokens=2),
        "for quantized-weights",
    ),
    ("companion-directories", {"tokenizer": "/missing"}, "tokenizer: model /missing: no such directory"),
    ("companion-directories", {"tokenizer": "/"}, "tokenizer: / has no tokenizer files"),
    ("companion-directories", {"generation_config": "/missing"}, "doesn't exist; give its directory"),
    ("sizes", {"max_model_len": 10**6}, "max_model_len=1000000 is over the"),
    (
        "sizes",
        {"max_model_len": 64, "max_num_batched_tokens": 8, "enable_chunked_prefill": False},
        "without chunked prefill a step must hold a whole prompt",
    ),
    ("sizes", {"max_model_len": 64, "num_gpu_blocks_override": 3}, "hold 48 tokens, less than one sequence"),
    ("sizes", {"block_size": 1, "num_gpu_blocks_override": 1}, "hold 1 tokens"),
    (
        "pooler-settings",
        {"runner": "pooling", "pooler_config": {"dimensions": 129}},
        "dimensions=129 is over the embedding's 128",
    ),
    ("kv-connector-settings", transfer(STORAGE), "needs shared_storage_path"),
    ("kv-connector-settings", transfer(STORAGE, shared_storage_path="/x", shards=2), "doesn't know 'shards'"),
    ("kv-connector-settings", transfer(ARENA, shared_memory_path="/dev/shm/x"), "needs memory_bytes"),
    (
        "kv-connector-settings",
        {"kv_offloading_size": 1.0, "kv_transfer_config": {"kv_port": 80}},
        "kv_port has no effect with OffloadingConnector",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "flat", "words"), REFUSED)
def test_what_would_not_start_is_refused_with_the_mend(rule: str, flat: dict[str, Any], words: str) -> None:
    verdict = decide(**flat)
    (refusal,) = [refusal for refusal in verdict.refusals if refusal.rule == rule]
    assert words in refusal.feature
    assert words in str(UnsupportedConfiguration.from_verdict(verdict))


@pytest.mark.parametrize(
    "flat",
    [
        speculative(method="ngram", num_speculative_tokens=2, prompt_lookup_min=2),
        speculative(model="[ngram]", num_speculative_tokens=2),
        speculative(method="suffix", suffix_decoding_max_cached_requests=0),
        speculative(method="draft_model", model=str(QWEN3), num_speculative_tokens=2),
        speculative(method="eagle3", model=str(CHECKPOINTS / "qwen3-eagle3"), num_speculative_tokens=2),
        {"tokenizer": str(QWEN3), "generation_config": str(QWEN3)},
        {"tokenizer": "/missing", "skip_tokenizer_init": True, "generation_config": "vllm"},
        {"tokenizer": "some/hub-id"},
        {"max_model_len": 64, "num_gpu_blocks_override": 4},
        {"num_gpu_blocks_override": 1},
        {"max_model_len": 64, "max_num_batched_tokens": 64, "enable_chunked_prefill": False},
        {"runner": "pooling", "pooler_config": {"dimensions": 128}},
        transfer(STORAGE, shared_storage_path="/x"),
        transfer({"kv_connector": "SharedStorageConnector"}, shards=2),  # takes no part
    ],
)
def test_what_starts_is_not_refused(flat: dict[str, Any]) -> None:
    assert decide(**flat).refusals == ()


@pytest.mark.parametrize(
    ("name", "raw", "method", "parallel"),
    [
        ("qwen3-peagle", None, "eagle3", True),
        ("qwen3-eagle3-speculators", None, "eagle3", False),
        ("qwen3", None, "draft_model", False),
        ("head", {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"}, "eagle3", False),
        ("head", {"architectures": ["MedusaModel"], "model_type": "medusa"}, "medusa", False),
        ("my-eagle3", {"model_type": "llama"}, "eagle3", False),
        ("my-eagle3", {"speculators_model_type": "peagle"}, "eagle3", True),
    ],
)
def test_the_method_is_read_off_the_draft(
    name: str, raw: dict[str, Any] | None, method: str, parallel: bool, tmp_path: Path
) -> None:
    """By vLLM's order, but that what speculators writes counts before the directory's name."""
    directory = CHECKPOINTS / name
    if raw is not None:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(raw))
    found = decide(speculative_config={"model": str(directory), "num_speculative_tokens": 2})
    assert found.config.speculative_config is not None
    assert found.config.speculative_config.method == method
    assert found.config.speculative_config.parallel_drafting is parallel
    assert ("speculative-method" in {r.rule for r in found.refusals}) == (method == "medusa")
    if raw is None:
        assert found.refusals == ()


def test_a_draft_that_does_not_fit_its_target(tmp_path: Path) -> None:
    for change, words in (
        ({"vocab_size": 9}, "vocab_size=9"),
        ({"max_position_embeddings": 8}, "is less than"),
    ):
        raw = json.loads((QWEN3 / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
        found = decide(**speculative(method="draft_model", model=str(tmp_path), num_speculative_tokens=2))
        assert [words in refusal.feature for refusal in found.refusals] == [True]


def test_mxfp4_of_a_model_without_experts(tmp_path: Path) -> None:
    raw = json.loads((QWEN3 / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {"quant_method": "mxfp4"}})
    )
    assert [refusal.rule for refusal in decide(tmp_path).refusals] == ["quantization"]


@pytest.mark.parametrize(("is_decoder", "rules"), [(None, ["causal-lm"]), (False, ["causal-lm"]), (True, [])])
def test_an_encoder_generates_only_as_a_decoder(
    is_decoder: bool | None, rules: list[str], tmp_path: Path
) -> None:
    """BertLMHeadModel without is_decoder sees the tokens that it is to write."""
    raw = {"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": is_decoder}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert [refusal.rule for refusal in decide(tmp_path, runner="generate").refusals] == rules
