"""Every pair of features that the rules permit together in workers, run: tokens are one rank's.

    python -m tests.distributed.pairs [--seed N] [--list] [--only N]

About a hundred configurations have every permitted pair of values between them. Each is an engine whose ranks
are threads of this process; a test runs some of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints.quantize import quantize_checkpoint
from dodona import LLM, LoRARequest, SamplingParams
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.outputs import RequestOutput
from tests.distributed.thread_workers import use_threads
from tests.support.adapters import write_adapter
from tests.support.equal_tokens import BF16_TIE, FP32_TIE
from tests.support.tiny_models import make_model

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_TOKENIZER = CHECKPOINTS / "qwen3"
_SIZES = {"vocab_size": 380, "hidden_size": 128, "intermediate_size": 96}
"""So that heads and draft models of the trained checkpoints fit."""
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]

MODELS: Mapping[str, tuple[str, dict[str, Any]] | None] = {
    "qwen3": None,
    "qwen3_moe": None,
    "gemma2": ("gemma2", {**_SIZES, "num_hidden_layers": 3}),
    "deepseek-v3": (
        "deepseek-v3",
        {
            **_SIZES,
            "num_hidden_layers": 3,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "v_head_dim": 16,
        },
    ),
    "gpt-oss": (
        "gpt-oss",
        {
            **_SIZES,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3-next": (
        "qwen3-next",
        {
            **_SIZES,
            "num_hidden_layers": 4,
            "layer_types": _HYBRID,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
}
"""A family of tiny models and its changes; None: the checkpoint of that name."""

_TP, _PP, _PCP, _DP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "prefill_context", "data"))
_EP = {_TP: 2, "enable_expert_parallel": True}
LAYOUTS: Mapping[str, dict[str, Any]] = {
    "tp2": {_TP: 2},
    "tp4": {_TP: 4},
    "pp2": {_PP: 2},
    "pcp2": {_PCP: 2},
    "dp2": {_DP: 2},
    "ep2": _EP,
    "tp2 pp2": {_TP: 2, _PP: 2},
    "tp2 pcp2": {_TP: 2, _PCP: 2},
    "tp2 dp2": {_TP: 2, _DP: 2},
    "pp2 pcp2": {_PP: 2, _PCP: 2},
    "pp2 dp2": {_PP: 2, _DP: 2},
    "pcp2 dp2": {_PCP: 2, _DP: 2},
    "ep2 pp2": {**_EP, _PP: 2},
    "ep2 pcp2": {**_EP, _PCP: 2},
    "ep2 dp2": {**_EP, _DP: 2},
}

_LOOKUP = {"num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
DRAFTS: Mapping[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", **_LOOKUP},
    "suffix": {"method": "suffix", "num_speculative_tokens": 3, "suffix_decoding_max_cached_requests": 0},
    "draft_model": {
        "method": "draft_model",
        "model": str(CHECKPOINTS / "qwen3"),
        "num_speculative_tokens": 2,
    },
    "eagle3": {"method": "eagle3", "model": str(CHECKPOINTS / "qwen3-eagle3"), "num_speculative_tokens": 3},
    "peagle": {
        "method": "eagle3",
        "model": str(CHECKPOINTS / "qwen3-peagle"),
        "num_speculative_tokens": 3,
        "parallel_drafting": True,
    },
}

CONNECTORS = ("none", "offloading", "storage", "memory")
QUANTIZED = ("none", "w4a16", "w8a8-int8", "gptq-act-order", "int8 at load")
ADAPTERS = ("none", "lora")
CACHES: Mapping[str, dict[str, Any]] = {
    "roomy, cached": {"num_gpu_blocks_override": 96, "enable_prefix_caching": True},
    "tight, cached": {"num_gpu_blocks_override": 18, "enable_prefix_caching": True},
    "tight": {"num_gpu_blocks_override": 18, "enable_prefix_caching": False},
}
DIMENSIONS: Mapping[str, Sequence[str]] = {
    "model": tuple(MODELS),
    "layout": tuple(LAYOUTS),
    "drafts": tuple(DRAFTS),
    "connector": CONNECTORS,
    "quantized": QUANTIZED,
    "adapters": ADAPTERS,
    "cache": tuple(CACHES),
}
Value = tuple[str, str]
"""A dimension and a value of it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of each dimension."""

    model: str = "qwen3"
    layout: str = "tp2"
    drafts: str = "none"
    connector: str = "none"
    quantized: str = "none"
    adapters: str = "none"
    cache: str = "roomy, cached"

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple((name, getattr(self, name)) for name in DIMENSIONS)

    @property
    def pairs(self) -> frozenset[frozenset[Value]]:
        return frozenset(map(frozenset, itertools.combinations(self.values, 2)))

    def __str__(self) -> str:
        return ", ".join(value for name, value in self.values if value != "none")


class Models:
    """Makes the models, below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def path(self, model: str, quantized: str = "none") -> Path:
        """The model's directory, with these weights."""
        made = MODELS[model]
        plain = CHECKPOINTS / model if made is None else self._folder / model
        if not plain.exists():
            family, changes = made or ("", {})
            whole = make_model(family, **changes)
            whole.generation_config.eos_token_id = None
            whole.save_pretrained(plain)
            for file in _TOKENIZER.glob("tokenizer*"):
                shutil.copy(file, plain)
        if quantized in ("none", "int8 at load"):
            return plain
        path = self._folder / f"{model}-{quantized}"
        if not path.exists():
            quantize_checkpoint(plain, path, quantized)
            if model == "qwen3-next":  # what the tool leaves plain
                config = json.loads((path / "config.json").read_text())
                config["quantization_config"]["ignore"] = ["re:.*linear_attn.*", "re:.*gate$", "lm_head"]
                (path / "config.json").write_text(json.dumps(config))
        return path

    def adapters(self, model: str, llm: LLM) -> list[LoRARequest]:
        """Two of all layers that can have them."""
        found = llm._client.call_all(lambda runner, _: runner.get_lora_targets())[0]
        targets = {name: (target.in_features, target.out_features) for name, target in found.items()}
        paths = [self._folder / f"{model}-adapter-{number}" for number in (1, 2)]
        for number, path in enumerate(paths):
            if not path.exists():
                ends = sorted({name.rpartition(".")[2] for name in targets})[:: number + 1]
                some = {name: sizes for name, sizes in targets.items() if name.rpartition(".")[2] in ends}
                write_adapter(path, some, r=2 + 2 * number, seed=number, lora_alpha=2, spread=0.1)
        return [LoRARequest(str(n), n, str(path)) for n, path in enumerate(paths, start=1)]


def flat_settings(choice: Choice, path: Path, folder: Path, *, alone: bool = False) -> dict[str, Any]:
    """The configuration. alone: that of the reference, one rank without drafts or a connector."""
    flat: dict[str, Any] = {
        "model": str(path), "device": "cpu", "dtype": "float32", "block_size": 4, "max_num_seqs": 5,
        "max_model_len": 64, "max_num_batched_tokens": 16, **CACHES[choice.cache],
    }  # fmt: skip
    if choice.quantized == "int8 at load":
        flat["quantization"] = "int8"
    if choice.adapters != "none":
        flat |= {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    if alone:
        return {**flat, "num_gpu_blocks_override": 96, "enable_prefix_caching": False}
    flat |= LAYOUTS[choice.layout]
    if DRAFTS[choice.drafts] is not None:
        flat["speculative_config"] = DRAFTS[choice.drafts]
    if choice.connector == "offloading":
        flat["kv_offloading_size"] = 0.01
    elif choice.connector != "none":
        name, extra = {
            "storage": ("SharedStorageConnector", {"shared_storage_path": str(folder)}),
            "memory": (
                "SharedMemoryConnector",
                {"shared_memory_path": str(folder), "memory_bytes": 1 << 23, "wait_seconds": 20},
            ),
        }[choice.connector]
        flat["kv_transfer_config"] = {
            "kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": extra,
        }  # fmt: skip
    return flat


def refusal(choice: Choice, models: Models) -> str | None:
    """The rules that refuse it; None: it is permitted."""
    if (choice.model, choice.quantized) == ("qwen3-next", "gptq-act-order"):
        return "(the tool that quantizes makes none)"
    flat = flat_settings(choice, models.path(choice.model, choice.quantized), Path("folder"))
    machine = Environment(has_triton=False, platform="cpu", packages=Environment.detect().packages)
    try:
        select_runner(EngineConfig.from_flat(**flat), environment=machine)
    except UnsupportedConfiguration as error:
        return ", ".join(reason.rule for reason in error.verdict.refusals)
    return None


def pairs(models: Models) -> tuple[set[frozenset[Value]], dict[frozenset[Value], str]]:
    """The pairs of values that the rules permit, and those that they refuse with the rules that do so."""
    permitted, refused = set(), {}
    for (one, ones), (other, others) in itertools.combinations(DIMENSIONS.items(), 2):
        for a, b in itertools.product(ones, others):
            pair = frozenset({(one, a), (other, b)})
            # The rest is as in `Choice`, but for what the pair needs to be served at all.
            tried = [replace(Choice(), **{one: a, other: b})]
            if "layout" not in (one, other):
                tried += [replace(tried[0], layout=layout) for layout in ("pp2", "dp2")]
            if "model" not in (one, other):
                tried += [replace(each, model="qwen3_moe") for each in tried]
            found = [refusal(each, models) for each in tried]
            if None in found:
                permitted.add(pair)
            else:
                refused[pair] = str(found[0])
    return permitted, refused


def covering(models: Models, wanted: set[frozenset[Value]], seed: int = 0) -> Iterator[Choice]:
    """Permitted choices that have all wanted pairs between them."""
    rng, left, known = random.Random(seed), set(wanted), {}
    while left:
        first = rng.choice(sorted(left, key=sorted))
        best: tuple[int, Choice] | None = None
        for _ in range(60):
            drawn = {name: rng.choice(values) for name, values in DIMENSIONS.items()}
            choice = Choice(**{**drawn, **dict(first)})
            for name in rng.sample(sorted(DIMENSIONS), len(DIMENSIONS)):
                if choice not in known:
                    known[choice] = refusal(choice, models)
                if known[choice] is None:
                    break
                if name not in dict(first):  # take features away until it is permitted
                    choice = replace(choice, **{name: getattr(Choice(), name)})
            if known.get(choice, "") is None:
                count = len(choice.pairs & left)
                if best is None or count > best[0]:
                    best = count, choice
        assert best is not None, sorted(first)
        left -= best[1].pairs
        yield best[1]


PHRASE = [5 + (j * j * 7) % 370 for j in range(6)]
_GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "logprobs": 2}
REQUESTS: Sequence[tuple[list[int], dict[str, Any]]] = (
    (PHRASE * 4, _GREEDY),
    ([7, 9, 11], {**_GREEDY, "prompt_logprobs": 1}),
    ([*range(20, 53)], _GREEDY),
    (PHRASE[2:] + PHRASE * 3, {**_GREEDY, "repetition_penalty": 1.3, "max_tokens": 10}),
    (PHRASE * 3, {**_GREEDY, "ignore_eos": False, "structured_outputs": {"regex": "([0-9] ?){3,6}"}}),
    (PHRASE * 2 + [8], {"temperature": 0.9, "seed": 7, "max_tokens": 6, "ignore_eos": True, "n": 2}),
    ([30, 31, 32, 33, 34], {"temperature": 1.1, "top_k": 9, "seed": 3, "max_tokens": 9, "ignore_eos": True}),
)
_RESTRICTED = (4,)
"""Requests whose tokens a grammar chooses from: their best tokens may not be the model's."""
_DRAWN = (5, 6)
"""Requests whose tokens drafts change: equal only in distribution."""


def ask(llm: LLM, adapters: Sequence[LoRARequest]) -> list[RequestOutput]:
    """What the engine gives all requests at once."""
    chosen = [None, *adapters][: 1 + len(adapters)]
    lora = [chosen[number % len(chosen)] for number in range(len(REQUESTS))]
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in REQUESTS]
    params = [SamplingParams(**settings) for _, settings in REQUESTS]
    outputs = llm.generate(prompts, params, lora_request=lora if adapters else None, use_tqdm=False)
    for output in outputs:
        assert output.error is None, output.error
    return outputs


class Check:
    """Runs choices and compares each with one rank's engine of the same model."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._alone: dict[tuple[str, str, str], list[RequestOutput]] = {}
        self.ties: list[str] = []

    def __call__(self, choice: Choice, folder: Path, *, thorough: bool = True) -> None:
        """Raises AssertionError where tokens differ or something is left. thorough: also through aborts,
        reloads and sleeps."""
        path = self.models.path(choice.model, choice.quantized)
        expected = self._expected(choice, path)
        with LLM(**flat_settings(choice, path, folder)) as llm:
            adapters = self.models.adapters(choice.model, llm) if choice.adapters != "none" else []
            self._compare(choice, expected, ask(llm, adapters), "at first")
            if choice.drafts != "none":
                assert llm.draft_stats().num_draft_tokens or choice.model not in ("qwen3", "qwen3_moe")
            self._compare(choice, expected, ask(llm, adapters), "from caches")
            if thorough:
                _abort(llm)
                llm.reload_weights()
                self._compare(choice, expected, ask(llm, adapters), "after a reload")
                llm.sleep(level=1)
                llm.wake_up()
                self._compare(choice, expected, ask(llm, adapters), "after a light sleep")
                llm.sleep(level=2)
                llm.wake_up()
                llm.reload_weights()
                self._compare(choice, expected, ask(llm, adapters), "after a deep sleep")
            _check_nothing_is_held(llm)

    def _expected(self, choice: Choice, path: Path) -> list[RequestOutput]:
        key = choice.model, choice.quantized, choice.adapters
        if key not in self._alone:
            with LLM(**flat_settings(choice, path, path, alone=True)) as llm:
                adapters = self.models.adapters(choice.model, llm) if choice.adapters != "none" else []
                self._alone[key] = ask(llm, adapters)
        return self._alone[key]

    def _compare(
        self, choice: Choice, expected: list[RequestOutput], found: list[RequestOutput], when: str
    ) -> None:
        rounds = choice.quantized == "w8a8-int8"
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            if number in _DRAWN and choice.drafts != "none":
                continue
            for a, b in zip(one.outputs, other.outputs, strict=True):
                here = f"{choice}: request {number} {when}"
                at = next(
                    (i for i, p in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if p[0] != p[1]),
                    None,
                )
                if at is None:
                    assert len(a.token_ids) == len(b.token_ids), here
                    for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
                        for token in x.keys() & y.keys():
                            difference = abs(x[token].logprob - y[token].logprob)
                            assert difference < (0.3 if rounds else 2e-3), f"{here}: {difference}"
                    continue
                said = f"{here}: {list(b.token_ids)} instead of {list(a.token_ids)}"
                assert a.logprobs is not None, said
                if number in _RESTRICTED:
                    assert b.logprobs is not None, said
                    chosen = a.logprobs[at][a.token_ids[at]], b.logprobs[at][b.token_ids[at]]
                    gap = abs(chosen[0].logprob - chosen[1].logprob)
                else:
                    best = sorted((each.logprob for each in a.logprobs[at].values()), reverse=True)
                    gap = best[0] - best[1]
                limit = BF16_TIE * 8 if rounds else FP32_TIE
                assert gap <= limit, f"{said} (the two best differ by {gap:.2g})"
                self.ties.append(said)


def _abort(llm: LLM) -> None:
    """In the middle of an output, and in the middle of a prompt."""
    stream = llm.stream({"prompt_token_ids": PHRASE * 5}, SamplingParams(max_tokens=30, ignore_eos=True))
    next(stream)
    stream.close()
    stream = llm.stream(
        [{"prompt_token_ids": [*range(9, 60)]}, {"prompt_token_ids": PHRASE}], SamplingParams(max_tokens=4)
    )
    next(stream)
    stream.close()


def _check_nothing_is_held(llm: LLM) -> None:
    def held(_: Any, scheduler: Any) -> tuple[Any, ...]:
        blocks = scheduler.blocks
        return (
            scheduler.num_unfinished,
            scheduler.transfers.held_blocks(),
            blocks.num_blocks - blocks.num_free,
        )

    for found in llm._client.call_all(held, drain=True):
        assert found == (0, [], 0), found


@contextmanager
def threads() -> Iterator[None]:
    """Ranks are threads within it, on runner V1."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
        use_threads(monkeypatch)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="say what would run, and what is refused")
    parser.add_argument("--only", type=int, help="stop after so many")
    parser.add_argument("--skip", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, threads():
        models = Models(Path(name) / "models")
        permitted, refused = pairs(models)
        chosen = list(covering(models, permitted, arguments.seed))
        print(f"{len(permitted)} pairs permitted, {len(refused)} refused; {len(chosen)} configurations")
        if arguments.list:
            for pair, rules in refused.items():
                print("refused:", " with ".join(value for _, value in sorted(pair)), "by", rules)
            print(*chosen, sep="\n")
            return
        check, failed = Check(models), 0
        for number, choice in enumerate(chosen[: arguments.only]):
            if number < arguments.skip:
                continue
            began = time.monotonic()
            try:
                check(choice, Path(name) / f"kv-{number}")
                result = "equal"
            except Exception as error:
                failed += 1
                result = f"FAILED: {type(error).__name__}: {error}"
                traceback.print_exc()
            print(f"{number} {time.monotonic() - began:.1f} s {choice}: {result}", flush=True)
        print(f"{failed} failed; ties: {check.ties}")
        sys.exit(bool(failed))


if __name__ == "__main__":
    main()
