"""Hostile settings and folders of the corpus: KV connectors, versions of packages, quantization by libraries,
lookup of suffixes, several devices, drafts of all formats, and adapters of other layers.

Each entry changes one thing of a set that works.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dodona.oracle.machine.packages import TESTED
from tests.support.hostile_files import CONTENTS, QWEN3, ROOT, SPECIAL, TEXTS, command, folder
from tests.support.hostile_parts import PATTERNS, SHORT, VALUES, Act, Change, head, put, speculate

NAMES = (*TEXTS, "file://x", "s3://user:pass@host/x", "~nobody/x", "/dev/null", "/proc/self/mem", "a\0b")
"""What a path is set to."""
VERSIONS = (
    "", " ", "x", "-1", "0", "5", "5.24.dev0", "5.24.0+cu130", "1!5.24.0", "5.24.0rc1", "v5.24.0", "5.24.*",
    "9" * 5_000, "5." * 5_000, "5.24.0\x1b[2J", "\u202e5.24.0", "\ud800", "==5.24.0", "5,no-ray", "None",
)  # fmt: skip
PACKAGES = ("transformers", "torch", "accelerate", "bitsandbytes", "torchao", "ray", "llguidance", "\x1b[2J")


def connectors() -> Iterator[Change]:
    """`--kv-transfer-config`, and what lies in the folders of connectors."""
    for name, extra in (
        ("SharedStorageConnector", {"shared_storage_path": "FOLDER", "max_bytes": 1 << 20}),
        (
            "SharedMemoryConnector",
            {"shared_memory_path": "FOLDER", "memory_bytes": 1 << 20, "wait_seconds": 1},
        ),
        ("OffloadingConnector", {"cpu_bytes_to_use": 1 << 20}),
    ):
        whole = {"kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": extra}
        for field in extra:
            for value in (*VALUES, *(NAMES if field.endswith("path") else (2**62, 10**400))):
                changed = {**whole, "kv_connector_extra_config": {**extra, field: value}}
                yield f"{name}: {field}={value!r:.20}", lambda p, c=changed: connect(p, c)
        for field in (
            "kv_connector",
            "kv_role",
            "kv_connector_extra_config",
            "kv_connector_module_path",
            "x",
        ):
            for value in VALUES:
                yield f"{name}: {field}={value!r:.20}", lambda p, c={**whole, field: value}: connect(p, c)
    for name, content in (*CONTENTS.items(), *SPECIAL.items()):
        yield f"block: {name}", lambda p, c=content: stored(p, "block", c)
        yield f"parts: {name}", lambda p, c=content: stored(p, "parts", c)
        yield f"name space: {name}", lambda p, c=content: stored(p, "namespace", c)
        yield f"arena: {name}", lambda p, c=content: shared(p, "0" * 32 + ".kv", c)
        yield f"new arena: {name}", lambda p, c=content: shared(p, "0" * 32 + ".new", c)


def versions() -> Iterator[Change]:
    """Versions of `--assume`, and those of a machine file."""
    for package in PACKAGES:
        for version in VERSIONS:
            words = ["select", str(QWEN3), "--assume", f"{package}=={version}"]
            yield f"{package}=={version!r:.20}", lambda p, w=words: command(w)
        for value in VALUES:
            yield f"packages: {package}={value!r:.20}", lambda p, v={package: value}: machine(p, v)
    for value in VALUES:
        yield f"packages={value!r:.20}", lambda p, v=value: machine(p, v)


def libraries() -> Iterator[Change]:
    """`quantization_config` of bitsandbytes and torchao."""
    bitsandbytes = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    kind = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": None}}
    torchao = {"quant_method": "torchao", "quant_type": {"default": kind}}
    for whole, fields in (
        (bitsandbytes, ("quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type",
                        "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_skip_modules",
                        "llm_int8_threshold", "x")),
        (torchao, ("quant_method", "quant_type", "modules_to_not_convert", "untie_embedding_weights", "x")),
    ):  # fmt: skip
        for field in fields:
            for value in (*VALUES, *PATTERNS, {"default": value_of(kind)}):
                yield f"{field}={value!r:.20}", lambda p, c={**whole, field: value}: by_library(p, c)
    for field in kind:
        for value in VALUES:
            changed = {**torchao, "quant_type": {"default": {**kind, field: value}}}
            yield f"default.{field}={value!r:.20}", lambda p, c=changed: by_library(p, c)


def value_of(kind: dict[str, Any]) -> dict[str, Any]:
    """The settings of a kind in itself."""
    return {**kind, "_data": kind}


def suffixes() -> Iterator[Change]:
    """`suffix_decoding_*`."""
    whole = {"method": "suffix", "num_speculative_tokens": 2, "suffix_decoding_max_cached_requests": 0}
    for field in ("max_tree_depth", "max_cached_requests", "max_spec_factor", "min_token_prob"):
        for value in (*VALUES, 1e300, 2**31):
            changed = {**whole, f"suffix_decoding_{field}": value}
            yield f"{field}={value!r:.20}", lambda p, c=changed: speculate(c)


def devices() -> Iterator[Change]:
    """Settings of several devices, for a machine of eight GPUs and for this one."""
    for field in (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
        "prefill_context_parallel_size", "decode_context_parallel_size", "distributed_executor_backend",
        "data_parallel_backend", "disable_custom_all_reduce", "enable_expert_parallel",
        "max_num_batched_tokens",
    ):  # fmt: skip
        for value in (*VALUES, 3, 2**20):
            for machine_name in ("h100", "cpu"):
                yield (
                    f"{field}={value!r:.20} on {machine_name}",
                    lambda p, c={field: value}, m=machine_name: configured(p, c, m),
                )
    for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        for value in (1, 3, 7, 2**31):
            words = ["--assume", "h100", "--tensor-parallel-size", "2"]
            yield (
                f"2 GPUs: {field}={value}",
                lambda p, c={field: value}, w=words: command(["select", str(folder(p, c)), *w]),
            )


def draft_folders() -> Iterator[Change]:
    """Folders of P-EAGLE heads, of speculators' heads, and of draft models."""
    for field in ("mask_token_id", "speculators_model_type", "transformer_layer_config", "draft_vocab_size",
                  "eagle_aux_hidden_state_layer_ids", "speculators_config", "norm_before_residual",
                  "mask_token_id", "ptd_token_id", "architectures"):  # fmt: skip
        for value in VALUES:
            yield f"P-EAGLE: {field}={value!r:.20}", lambda p, c={field: value}: parallel_head(p, c)
    for file in ("config.json", "model.safetensors"):
        for name, content in (*CONTENTS.items(), *SPECIAL.items()):
            yield f"P-EAGLE: {file}: {name}", lambda p, f=file, c=content: parallel_head(p, {}, f, c)
            yield (
                f"speculators: {file}: {name}",
                lambda p, f=file, c=content: head(p, "qwen3-eagle3-speculators", {}, f, c),
            )
            yield f"draft model: {file}: {name}", lambda p, f=file, c=content: draft_model(p, {}, f, c)
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "model_type", "architectures"):
        for value in VALUES:
            yield f"draft model: {field}={value!r:.20}", lambda p, c={field: value}: draft_model(p, c)


def layers_of_adapters() -> Iterator[Change]:
    """Adapters of experts, routers, embeddings and transposed layers."""
    targets: tuple[Any, ...] = (
        "all-linear", ["lm_head"], ["embed_tokens"], ["c_attn"], ["gate"], ["experts"], ["q_proj", "experts"],
        ["\x1b[2J"], ["\u202e"], ["\ud800"], [""], ["."], ["model"], ["x" * 100_000], ["q_proj"] * 10_000,
        [["q_proj"]], {"q_proj": 1}, *PATTERNS,
    )  # fmt: skip
    for model, layer, shape in (
        ("qwen3_moe", "model.layers.0.self_attn.q_proj", (256, 128)),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj", (64, 128)),
        ("qwen3_moe", "model.layers.0.mlp.gate", (8, 128)),
        ("gpt2", "transformer.h.0.attn.c_attn", (96, 32)),
        ("gpt2", "transformer.h.0.ln_1", (32, 32)),
    ):
        last = layer.rpartition(".")[2]
        yield f"{model}: {last}", lambda p, a=(model, layer, shape): adapt(p, *a, {})
        for target in targets:
            changes = {"target_modules": target}
            yield (
                f"{model} {last}: {target!r:.30}",
                lambda p, a=(model, layer, shape), c=changes: adapt(p, *a, c),
            )
        for field in (
            "target_parameters",
            "fan_in_fan_out",
            "modules_to_save",
            "layers_pattern",
            "use_rslora",
        ):
            for value in VALUES:
                yield (
                    f"{model} {last}: {field}={value!r:.20}",
                    lambda p, a=(model, layer, shape), c={field: value}: adapt(p, *a, c),
                )


def connect(path: Path, transfer: dict[str, Any]) -> None:
    """A generation with this `kv_transfer_config`."""
    text = json.dumps(transfer).replace("FOLDER", str(path / "kv"))
    command(
        [
            "generate",
            str(QWEN3),
            "--prompt",
            "1 + 1",
            "--max-tokens",
            "2",
            *SHORT,
            "--kv-transfer-config",
            text,
        ]
    )


def stored(path: Path, what: str, content: bytes | Act) -> None:
    """Blocks in files, of which one is something else: tokens stay."""
    root = path / "kv"
    before = _tokens("SharedStorageConnector", {"shared_storage_path": str(root)})
    files = sorted(root.rglob("*.safetensors"))
    assert files, "nothing is stored"
    if what == "block":
        put(files[0], content)
    elif what == "parts":
        (parts := files[0].with_suffix(".parts")).mkdir()
        for name in ("0-2.0of1", "0-4.0of1", "0-2.0of2", "x"):
            put(parts / f"{name}.safetensors", content)
        files[0].unlink()
    else:
        for file in root.iterdir():
            file.rename(file.with_name("moved"))
            put(file, content)
    assert _tokens("SharedStorageConnector", {"shared_storage_path": str(root)}) == before, "other tokens"


def shared(path: Path, name: str, content: bytes | Act) -> None:
    """A folder of shared memory in which something else lies: tokens stay."""
    root = path / "kv"
    root.mkdir(mode=0o700)
    put(root / name, content)
    extra = {"shared_memory_path": str(root), "memory_bytes": 1 << 20, "wait_seconds": 0.2}
    assert _tokens("SharedMemoryConnector", extra) == _tokens(None, {}), "other tokens"


def _tokens(connector: str | None, extra: dict[str, Any]) -> list[int]:
    from dodona import LLM, SamplingParams

    transfer = {"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    sizes = {"max_model_len": 64, "num_gpu_blocks_override": 16, "block_size": 8, "skip_tokenizer_init": True}
    with LLM(QWEN3, device="cpu", kv_transfer_config=None if connector is None else transfer, **sizes) as llm:
        (output,) = llm.generate([list(range(5, 45))], SamplingParams(temperature=0.0, max_tokens=3))
        assert output.error is None
        return list(output.outputs[0].token_ids)


def machine(path: Path, packages: object) -> None:
    """A choice for a machine with these packages."""
    put(path / "machine.yaml", json.dumps({"packages": packages}).encode())
    command(["select", str(QWEN3), "--assume", str(path / "machine.yaml")])


def by_library(path: Path, settings: dict[str, Any]) -> None:
    """A choice for a model that a library is said to have quantized, where the library is, and a load."""
    words = [str(folder(path, {"quantization_config": settings}))]
    packages = [f"{name}=={version}" for name, version in TESTED.items()]
    command(["select", *words, "--explain", *(w for name in ("cpu", *packages) for w in ("--assume", name))])
    command(["generate", *words, "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])


def configured(path: Path, arguments: dict[str, Any], machine_name: str) -> None:
    """A choice by a file of arguments."""
    put(path / "arguments.yaml", json.dumps(arguments).encode())
    command(["select", str(QWEN3), "--config", str(path / "arguments.yaml"), "--assume", machine_name])


def parallel_head(path: Path, changes: dict[str, Any], file: str = "", content: bytes | Act = b"") -> None:
    """Qwen3 with a changed P-EAGLE head."""
    folder(path, changes, ROOT / "checkpoints/qwen3-peagle")
    if file:
        put(path / file, content)
    settings = {
        "method": "eagle3",
        "model": str(path),
        "num_speculative_tokens": 2,
        "parallel_drafting": True,
    }
    speculate(settings)


def draft_model(path: Path, changes: dict[str, Any], file: str = "", content: bytes | Act = b"") -> None:
    """Qwen3 with a changed copy of itself that drafts."""
    folder(path, changes)
    if file:
        put(path / file, content)
    speculate({"method": "draft_model", "model": str(path), "num_speculative_tokens": 2})


def adapt(path: Path, model: str, layer: str, shape: tuple[int, int], changes: dict[str, Any]) -> None:
    """A model with an adapter of one of its layers."""
    import torch
    from safetensors.torch import save_file

    from dodona import LLM, LoRARequest, SamplingParams
    from dodona.oracle.errors import ConfigError

    names = {part: f"base_model.model.{layer}.lora_{part}.weight" for part in "AB"}
    rows, columns = shape
    save_file(
        {names["A"]: torch.zeros(4, columns), names["B"]: torch.zeros(rows, 4)},
        path / "adapter_model.safetensors",
    )
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [layer], **changes}
    (path / "adapter_config.json").write_text(json.dumps(told))
    place = ROOT / "checkpoints" / model if model != "gpt2" else _gpt2(path / "model")
    sizes = {"max_model_len": 64, "num_gpu_blocks_override": 16, "skip_tokenizer_init": True}
    with LLM(place, device="cpu", enable_lora=True, **sizes) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=2)
        try:
            (output,) = llm.generate([[5, 6, 7]], params, lora_request=LoRARequest("a", 1, str(path)))
            if output.error is not None:
                raise ConfigError(output.error)
        finally:
            (after,) = llm.generate([[5, 6, 7]], params)
            assert after.error is None


def _gpt2(path: Path) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=131, n_embd=32, n_layer=1, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path
