"""Drafts in workers together with quantized weights, adapters, inner states and KV connectors: tokens are
those of a plain model, and drafts are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dodona import LLM, LoRARequest, SamplingParams
from dodona.runners.v1.drafting.lookup import LookupDrafter
from dodona.runners.v1.drafting.sequential import SequentialDrafter
from tests.distributed.test_combinations import DP, PCP, PP, TP, _storage
from tests.distributed.thread_workers import use_threads
from tests.lora.test_v1 import plain
from tests.support.adapters import linear_layers, merge, scale_of, write_adapter
from tests.support.equal_tokens import EqualTokens
from tests.support.quantized_reference import plain_model
from tests.v1.test_kv_shared_memory import memory

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
QWEN3 = CHECKPOINTS / "qwen3"
NEW_TOKENS = 10
PHRASE = [5 + (j * j * 7) % 370 for j in range(6)]
PROMPTS = [PHRASE * 4, [7, 9, 11], PHRASE[2:] + PHRASE * 3]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
DRAFT_MODEL = {"method": "draft_model", "model": str(QWEN3), "num_speculative_tokens": 3}
EAGLE3 = {"method": "eagle3", "model": str(CHECKPOINTS / "qwen3-eagle3"), "num_speculative_tokens": 3}


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    use_threads(monkeypatch)


def make_llm(path: Path, drafts: dict[str, Any], **flat: Any) -> LLM:
    settings = {
        "device": "cpu", "dtype": "float32", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 4,
        "max_model_len": 64, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 16,
    }  # fmt: skip
    return LLM(str(path), speculative_config=drafts, **{**settings, **flat})


class Check:
    """Compares with plain models, one for each prompt."""

    def __init__(self, models: Sequence[Any], *, rounds: bool = False) -> None:
        self.models = models
        self.rounds = rounds
        self._expected: list[list[int]] = []
        for prompt, model in zip(PROMPTS, models, strict=True):
            tokens = list(prompt)
            for _ in range(NEW_TOKENS):
                tokens.append(int(self._logits(model, tokens).argmax()))
            self._expected.append(tokens[len(prompt) :])

    @property
    def texts(self) -> list[list[int]]:
        """The prompts, each with what comes after it."""
        return [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, self._expected, strict=True)]

    def __call__(self, llm: LLM, **more: Any) -> list[int]:
        """Returns how many tokens of each prompt came from a cache."""
        params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False, **more)
        for prompt, model, expected, output in zip(
            PROMPTS, self.models, self._expected, outputs, strict=True
        ):
            equal = EqualTokens(lambda ids, m=model: self._logits(m, ids), half_precision=self.rounds)
            equal.compare(prompt, expected, output.outputs[0].token_ids)
        assert llm.draft_stats().num_accepted_tokens > 0
        return [output.num_cached_tokens for output in outputs]

    @staticmethod
    def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize(
    ("name", "drafts", "sizes"),
    [
        ("w4a16-asym", EAGLE3, {TP: 2}),
        ("awq", DRAFT_MODEL, {PP: 2}),
        ("w8a8-int8", EAGLE3, {PP: 2, TP: 2}),
        ("fp8", NGRAM, {TP: 2}),
        ("gptq", EAGLE3, {PCP: 2}),
        ("w8a16", DRAFT_MODEL, {DP: 2}),
    ],
    ids=str,
)
def test_quantized_layers(name, drafts, sizes):
    path = CHECKPOINTS / f"qwen3-{name}"
    check = Check([plain_model(path)] * 3, rounds="a8" in name or name == "fp8")
    with make_llm(path, drafts, **sizes) as llm:
        for _ in range(2):
            check(llm)


@pytest.mark.parametrize(
    ("drafts", "sizes"),
    [(EAGLE3, {TP: 2}), (DRAFT_MODEL, {PP: 2}), (NGRAM, {TP: 2, PCP: 2}), (EAGLE3, {PP: 2, DP: 2})],
    ids=str,
)
def test_adapters(tmp_path, drafts, sizes):
    targets = linear_layers(plain(QWEN3), ("q_proj", "o_proj", "up_proj", "down_proj"))
    first = write_adapter(tmp_path / "1", targets, r=2, lora_alpha=2, spread=0.05)
    second = write_adapter(tmp_path / "2", targets, r=4, seed=1, lora_alpha=2, spread=0.05)
    models = [
        merge(plain(QWEN3), first, scale_of(2, 2)),
        plain(QWEN3),
        merge(plain(QWEN3), second, scale_of(2, 4)),
    ]
    lora = [LoRARequest("1", 1, str(first)), None, LoRARequest("2", 2, str(second))]
    check = Check(models)
    with make_llm(QWEN3, drafts, enable_lora=True, max_loras=2, max_lora_rank=8, **sizes) as llm:
        for _ in range(2):
            check(llm, lora_request=lora)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("offloading", {TP: 2}), ("storage", {PP: 2, TP: 2}), ("memory", {PCP: 2}), ("offloading", {DP: 2})],
    ids=str,
)
def test_connectors(tmp_path, kind, sizes):
    flat = {
        "offloading": {"kv_offloading_size": 0.01},
        "storage": _storage(tmp_path),
        "memory": memory(tmp_path / "kv", "kv_both", memory_bytes=1 << 22),
    }[kind]
    check = Check([plain(QWEN3)] * 3)
    with make_llm(QWEN3, NGRAM, enable_prefix_caching=False, **sizes, **flat) as llm:
        check(llm)
        if kind == "memory":
            with make_llm(QWEN3, NGRAM, **flat) as other:
                assert check(other)[0] == 20
        elif DP not in sizes:
            assert check(llm)[0] >= 20


def propose_what_comes(monkeypatch: pytest.MonkeyPatch, texts: Sequence[Sequence[int]]) -> None:
    """Drafters propose two tokens that come in these texts and one that doesn't, in place of theirs."""

    def instead(propose: Any) -> Any:
        def proposals(drafter: Any, contexts: Any) -> Any:
            found = dict(propose(drafter, contexts))
            for context in contexts:
                so_far = list(context.state.tokens(0, context.end + 1))
                for text in texts:
                    right = list(text[len(so_far) : len(so_far) + 2])
                    if list(text[: len(so_far)]) == so_far and len(right) == 2:
                        found[context.row] = [*right, (right[-1] + 1) % 380]
            return found

        return proposals

    for drafter in (LookupDrafter, SequentialDrafter):
        monkeypatch.setattr(drafter, "propose", instead(drafter.propose))


@pytest.mark.parametrize(
    ("drafts", "sizes"), [(NGRAM, {PP: 2}), (DRAFT_MODEL, {PP: 2, DP: 2}), (EAGLE3, {PP: 2})], ids=str
)
def test_inner_states(tiny_models, monkeypatch, drafts, sizes):
    """States are kept after each draft, and go on from the last one that was accepted."""
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    path = tiny_models.path(
        "qwen3-next", num_hidden_layers=4, layer_types=kinds, vocab_size=380, hidden_size=128
    )
    check = Check([plain(path)] * 3)
    propose_what_comes(monkeypatch, check.texts)
    with make_llm(path, drafts, **sizes) as llm:
        for _ in range(2):
            check(llm)
        stats = llm.draft_stats()
        assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
