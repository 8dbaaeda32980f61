"""Whether what `dodona select` permits starts: random configurations over the flat arguments, each tried on a
CPU.

    python -m tests.support.permitted --examples 400 --seed 7

prints each configuration that rules and trial load permit and that then does not start, and each that the
trial load refuses although it starts; the exit status is 1 if there are any. Several ranks are threads,
and the machine is one with `HOST_GIB`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError, DodonaError, UnsupportedConfiguration
from dodona.oracle.machine.memory import available_memory
from dodona.oracle.select import select_runner
from dodona.runners.build import build_runner
from dodona.runners.llm import LLM
from dodona.runners.model_files import read_model_files
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.trial_load import try_load, why_untried
from tests.distributed.thread_workers import use_threads
from tests.support import damaged_models, every_family, models_table, pooling_table
from tests.support.tiny_hybrids import HYBRIDS
from tests.support.tiny_models import FAMILIES, TinyModels

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
HEADS = ("qwen3-eagle3", "qwen3-eagle3-speculators", "qwen3-peagle")

Choose = Callable[[Sequence[Any]], Any]
"""Takes one of several values, as `random.choice`."""


@dataclass(frozen=True)
class Tried:
    """What became of a configuration."""

    flat: Mapping[str, Any]
    outcome: str
    """"refused", "runs", or what was raised by a start that the rules permit."""
    why: str = ""
    """Why it was refused."""


RANKS = (
    {"tensor": 2},
    {"pipeline": 2},
    {"prefill_context": 2},
    {"data": 2},
    {"data": 3},
    {"tensor": 2, "data": 2},
    {"tensor": 2, "pipeline": 2},
)
"""How many ranks and replicas share the host's memory."""

LOOKS = ("files", "settings", "memory")
"""What is drawn: damaged files, settings of all kinds, or sizes of a KV cache near the edge."""

HOST_GIB = 1 / 16
"""Memory of a machine on which several ranks fill all of it with few blocks."""


def use_small_host(patch: pytest.MonkeyPatch) -> None:
    """Ranks are threads, on a machine with `HOST_GIB`."""
    use_threads(patch)
    for place in ("oracle.machine.memory", "runners.machine"):
        patch.setattr(f"dodona.{place}.host_memory", lambda: HOST_GIB)


def draw(choose: Choose, models: Sequence[Path], folder: Path, looks_at: str | None = None) -> dict[str, Any]:
    """Flat arguments, most of them left alone; `folder` is empty, and gets damaged copies of models.

    looks_at: one of `LOOKS`; None chooses one."""

    def some(values: Sequence[Any]) -> Any:
        return choose([None, None, None, *values])

    flat: dict[str, Any] = {"model": str(choose(models))}
    looks = looks_at or choose(["files", "files", "settings", "memory"])
    if looks == "memory":
        return flat | _near_the_edge(some, choose, flat["model"], folder)
    looks_at_files = looks == "files"
    if looks_at_files:
        flat["model"] = _damaged(choose, Path(flat["model"]), folder / "model")
    small = {
        "dtype": ["float32", "bfloat16", "float16"],
        "max_model_len": [1, 5, 64, 255, 257, 10**6],
        "block_size": [1, 4, 16, 48],
        "num_gpu_blocks_override": [1, 3, 64],
        "kv_cache_memory_bytes": [1, 3000, 1 << 17, 1 << 62],
        "gpu_memory_utilization": [1e-9, 0.5],
        "enable_prefix_caching": [False],
        "max_num_seqs": [1, 3],
        "max_num_batched_tokens": [1, 7, 300],
        "enable_chunked_prefill": [False],
        "quantization": ["int8", "fp8", "awq", "gptq_marlin", "nonsense"],
        "kv_cache_dtype": ["auto", "fp8"],
        "kv_offloading_size": [0.0, 0.001],
        "runner": ["generate", "pooling", "draft"],
        "convert": ["none", "embed", "classify"],
        "generation_config": ["vllm", str(folder), str(folder / "missing")],
        "tokenizer": [str(folder), str(folder / "missing"), str(CHECKPOINTS / "qwen3"), "some/tokenizer"],
        "compilation_config": [{"mode": mode} for mode in (0, 1, 2, 3)],
        "skip_tokenizer_init": [True],
        "load_format": ["dummy", "safetensors"],
        "enforce_eager": [True],
        "max_logprobs": [0, 10**6],
        "device": ["cpu", "cuda"],
        "seed": [7],
        "trust_remote_code": [True],
        "decode_context_parallel_size": [2],
        "enable_expert_parallel": [True],
        "data_parallel_rank": [0],
        "distributed_executor_backend": ["uni", "external_launcher"],
    }  # fmt: skip
    for name in random_names(choose, list(small), 12 if looks_at_files else 3):
        value = some(small[name])
        if value is not None:
            flat[name] = value
    if looks_at_files and choose([True, True, False]):
        return flat
    if choose([True, False, False, False]):
        flat["enable_lora"] = True
        flat["max_loras"], flat["max_lora_rank"] = choose([1, 3]), choose([1, 8])
        flat["max_cpu_loras"] = choose([None, 1, 4])
    if choose([True, True, False]):
        flat["speculative_config"] = _speculative(some, choose, flat["model"], folder)
    if choose([True, False, False, False, False]):
        flat["kv_transfer_config"] = _kv_transfer(some, choose, folder)
    if choose([True, False, False, False, False]):
        flat["pooler_config"] = {
            "pooling_type": some(["LAST", "CLS", "MEAN", "MAX"]),
            "dimensions": some([1, 32, 33]),
            "use_activation": some([True, False]),
        }
    return flat


def _near_the_edge(some: Choose, choose: Choose, model: str, folder: Path) -> dict[str, Any]:
    """Sizes of a KV cache that is just large enough, or just not: most of them by the sizes that the model's
    own KV cache has, where it can be loaded."""
    flat: dict[str, Any] = {
        "dtype": some(["bfloat16"]),
        "max_model_len": choose([None, 2, 5, 17, 64, 130, 255, 256]),
        "max_num_seqs": choose([None, 1, 2, 7]),
        "block_size": choose([None, 1, 4, 16, 17, 48]),
        "max_num_batched_tokens": choose([None, 3, 16, 64, 300]),
        "enable_prefix_caching": some([False]),
        "enforce_eager": some([True]),
        "load_format": some(["dummy"]),
    }
    if choose([True, False, False, False]):
        flat["speculative_config"] = _drafts(choose, model)
    if choose([True, False, False, False, False, False]):
        flat["enable_lora"], flat["max_lora_rank"] = True, 8
    flat |= {f"{name}_parallel_size": size for name, size in choose([{}, {}, *RANKS]).items()}
    flat = {name: value for name, value in flat.items() if value is not None}
    block, states = _kv_sizes({"model": model, **flat})
    length = flat.get("max_model_len", 256)
    blocks = -(-length // flat.get("block_size", 16))
    count = max(1, choose([1, blocks - 1, blocks, blocks, blocks + 1, 2 * blocks]))
    whole = max(1, count * block + states + choose([-1, 0, 0, 1, -block, -states]))
    edge = choose(
        ["kv_cache_memory_bytes"] * 3 + ["num_gpu_blocks_override", "gpu_memory_utilization", "offloading"]
    )
    parallel = EngineConfig.from_flat(model, **flat).parallel_config
    ranks = parallel.world_size_across_dp
    host = int(HOST_GIB * 2**30)
    of_rank = host // ranks - states
    if edge == "kv_cache_memory_bytes":
        flat[edge] = choose([1, whole, whole, whole, whole, host // ranks, host // ranks + 1, 1 << 40])
    elif edge == "num_gpu_blocks_override":
        most = max(1, of_rank // max(1, block))
        flat[edge] = choose([1, count, count, count, count, most, most + 1, 10**14])
    elif edge == "gpu_memory_utilization":
        # What is left changes between trial load and start: nothing is known at the edge itself.
        share = ranks * (blocks * block + states) / (available_memory() or 1 << 34)
        flat[edge] = choose([1e-12, *(min(1.0, share * part) for part in (0.25, 0.6, 1.5, 4)), 1.0])
    else:
        of_replica = host // parallel.data_parallel_size
        sizes = [1, block - 1, block, block + 1, 3 * block]
        given = max(1, choose([*(size * parallel.world_size for size in sizes), of_replica + 1, 2 * host]))
        flat |= choose([_offloaded(given), _offloaded(given), _by_connector(given), _shared(given, folder)])
        if choose([True, False, False]):
            flat["num_gpu_blocks_override"] = max(
                1, (of_rank - given // parallel.world_size) // max(1, block)
            )
    return flat


def _drafts(choose: Choose, model: str) -> dict[str, Any]:
    """What drafts, with KV of its own or without."""
    kinds: list[dict[str, Any]] = [
        {"method": "ngram", "prompt_lookup_max": 3},
        {"model": model},
        *({"model": str(CHECKPOINTS / head)} for head in HEADS),
        {"method": "mtp"},
    ]
    return {**choose(kinds), "num_speculative_tokens": choose([1, 3])}


def _offloaded(count: int) -> dict[str, Any]:
    return {"kv_offloading_size": count / 2**30}


def _by_connector(count: int) -> dict[str, Any]:
    extra = {"cpu_bytes_to_use": count}
    return {"kv_transfer_config": _connector("OffloadingConnector", extra)}


def _shared(count: int, folder: Path) -> dict[str, Any]:
    extra = {
        "shared_memory_path": str(folder / "kv"),
        "memory_bytes": count if count <= 1 << 24 else 1 << 50,
    }
    return {"kv_transfer_config": _connector("SharedMemoryConnector", extra)}


def _connector(name: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": dict(extra)}


def _kv_sizes(flat: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a KV block over all layers, and of the inner states of all rows, as the loaded model says; a
    guess where it can't be loaded."""
    try:
        verdict = select_runner(EngineConfig.from_flat(**flat, num_gpu_blocks_override=1024))
        model = read_model_files(verdict.config).model
        runner = build_runner(verdict, model)
        try:
            runner.load_model()
            spec = runner.get_kv_cache_spec()
            block = spec.bytes_per_block + sum(group.bytes_per_block for group in spec.window_groups)
            return block, runner.limits.max_num_seqs * spec.state_bytes_per_row
        finally:
            runner.shutdown()
    except Exception:
        return 4096, 0


def random_names(choose: Choose, names: list[str], one_in: int) -> list[str]:
    """Some of the names, in their order."""
    return [name for name in names if choose(range(one_in)) == 0]


def _damaged(choose: Choose, source: Path, folder: Path) -> str:
    """A copy of a model folder with one or two kinds of damage, which its name tells."""
    kinds = [choose(list(damaged_models.DAMAGES)) for _ in range(choose([1, 1, 1, 2]))]
    copy = damaged_models.copy(source, folder / f"{source.name}, {', '.join(kinds)}")
    for kind in sorted(kinds, key="pipe".__eq__):  # who reads a pipe waits
        no_room = (OSError, ValueError, KeyError, StopIteration, SafetensorError)  # for another damage
        with contextlib.suppress(*no_room):
            damaged_models.DAMAGES[kind](copy)
    return str(copy)


def _speculative(some: Choose, choose: Choose, model: str, folder: Path) -> dict[str, Any]:
    drafts = [
        model,
        *(str(CHECKPOINTS / head) for head in HEADS),
        str(folder),
        str(folder / "missing"),
        "some/draft",
        "ngram",
    ]
    if choose([True, False]):
        source = CHECKPOINTS / choose(["qwen3", *HEADS])
        drafts = [_damaged(choose, source, folder / "draft")]
    given = {
        "method": choose(
            [None, "ngram", "ngram", "suffix", "draft_model", "eagle", "eagle3", "mtp", "medusa"]
        ),
        "model": choose([None, None, *drafts]),
        "num_speculative_tokens": choose([None, 1, 3, 3, 3]),
        "prompt_lookup_max": some([1, 3]),
        "prompt_lookup_min": some([1, 3]),
        "suffix_decoding_max_cached_requests": choose([None, 0, 0, 5]),
        "suffix_decoding_max_tree_depth": some([2, 9]),
        "parallel_drafting": choose([None, None, True]),
        "draft_tensor_parallel_size": some([1, 2]),
    }
    return {name: value for name, value in given.items() if value is not None}


def _kv_transfer(some: Choose, choose: Choose, folder: Path) -> dict[str, Any]:
    extra = {
        "shared_storage_path": some([*_folders(folder), "s3://x", 7]),
        "shared_memory_path": some(_folders(folder)),
        "memory_bytes": some([0, 1 << 24, 1 << 50]),
        "cpu_bytes_to_use": some([1 << 24]),
        "max_bytes": some([1 << 24, "x"]),
    }
    given = {
        "kv_connector": choose(
            ["SharedStorageConnector", "SharedMemoryConnector", "OffloadingConnector", "X"]
        ),
        "kv_role": choose([None, "kv_both", "kv_producer", "kv_consumer"]),
        "kv_port": some([80]),
        "kv_connector_extra_config": {name: value for name, value in extra.items() if value is not None},
    }
    return {name: value for name, value in given.items() if value is not None}


def _folders(folder: Path) -> list[str]:
    """Half of them can't be made, or are others' to enter."""
    (folder / "file").touch()
    (folder / "open").mkdir(mode=0o755, exist_ok=True)
    cannot = ("file", "file/kv", "open", "x" * 300, "/proc/x", "/sys/kv", "kv/" * 2000)
    return [str(folder / "kv")] * len(cannot) + [str(folder / name) for name in cannot]


def pooling_models(folder: Path) -> list[Path]:
    """A model of sequences as embeddings, a cross-encoder and a classifying decoder."""
    kinds = (("bert", "embed", {}), ("bert", "classify", {"num_labels": 1}), ("llama", "classify", {}))
    paths = [folder / f"{family}-{task}" for family, task, _ in kinds]
    for path, (family, task, more) in zip(paths, kinds, strict=True):
        pooling_table.save(family, task, path, **more)
    return paths


def every_type(folder: Path) -> list[Path]:
    """Tiny models of all causal types of transformers that are served and can be made."""
    found: list[Path] = []
    for model_type in every_family.model_types():
        path = folder / model_type
        path.mkdir(parents=True)
        with contextlib.suppress(Exception):
            models_table.save(model_type, path)
            select_runner(EngineConfig.from_flat(str(path), device="cpu", skip_tokenizer_init=True))
            found.append(path)
    return found


def installed_families() -> list[str]:
    """The tiny models' families that the installed transformers has."""
    return [name for name, (kind, _) in {**FAMILIES, **HYBRIDS}.items() if kind in CONFIG_MAPPING]


def attempt(flat: Mapping[str, Any]) -> Tried:
    """Start an engine where rules and trial load permit a configuration, and let it answer a prompt of two
    tokens."""
    try:
        verdict = select_runner(EngineConfig.from_flat(**flat))
    except (ConfigError, UnsupportedConfiguration) as error:
        return Tried(flat, "refused", str(error))
    try:
        if why_untried(verdict) is None:
            try_load(verdict)
    except DodonaError as error:
        started = _start(flat, verdict)
        if started.outcome == "runs":
            return Tried(flat, f"false alarm: {error}")
        return Tried(flat, "refused", f"trial load: {error}; the start: {started.outcome}")
    except Exception as error:
        return Tried(flat, f"trial load raises {type(error).__name__}: {error}")
    return _start(flat, verdict)


def _start(flat: Mapping[str, Any], verdict: Verdict) -> Tried:
    try:
        with LLM.from_verdict(verdict) as llm:
            prompt = [{"prompt_token_ids": [5, 6][: max(1, llm.max_model_len - 1)]}]
            if llm.max_model_len == 1:
                return Tried(flat, "runs")
            output: Any
            if llm._client.pooling_settings is None:
                (output,) = llm.generate(
                    prompt, SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False
                )
                answered = output.error is None and len(output.outputs[0].token_ids) == 1
            else:
                (output,) = llm.encode(prompt, use_tqdm=False)
                answered = output.error is None
            return Tried(flat, "runs" if answered else f"no answer: {output.error}")
    except Exception as error:
        return Tried(flat, f"{type(error).__name__}: {str(error)[:300]}")


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refusals", action="store_true", help="print these too")
    parser.add_argument("--families", nargs="*", default=installed_families())
    parser.add_argument("--every-type", action="store_true", help="models of all types in place of families")
    parser.add_argument("--only", choices=LOOKS, help="look at nothing but this")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        use_small_host(patch)
        folder = Path(name)
        (folder / "empty").mkdir()
        tiny = TinyModels(folder / "models")
        models = every_type(folder / "types") if arguments.every_type else []
        models += [] if models else [tiny.path(family) for family in arguments.families]
        models += [CHECKPOINTS / "qwen3"] * (1 + len(models) // 3) + pooling_models(folder / "pooling") * 2
        models += [path.parent for path in CHECKPOINTS.glob("*/generation_config.json")]
        outcomes: Counter[str] = Counter()
        for _ in range(arguments.examples):
            for part in ("kv", "model", "draft"):
                shutil.rmtree(folder / "empty" / part, ignore_errors=True)
            flat = draw(rng.choice, models, folder / "empty", arguments.only)
            if arguments.every_type:
                flat["skip_tokenizer_init"] = True
            tried = attempt(flat)
            kind = tried.outcome if tried.outcome in ("refused", "runs") else "fails"
            outcomes[kind] += 1
            if arguments.refusals and kind == "refused":
                print("refused:", tried.why[:200], dict(tried.flat), flush=True)
            if kind == "fails":
                print(tried.outcome, dict(tried.flat), flush=True)
        print(dict(outcomes))
    return int(bool(outcomes["fails"]))


if __name__ == "__main__":
    raise SystemExit(main())
