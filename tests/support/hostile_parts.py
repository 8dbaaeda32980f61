"""Hostile parts of the corpus that lie beside a model: draft models, LoRA adapters, the files of Sentence
Transformers, quantization settings, machine files, and repositories with deployments.

Each entry changes one thing of a set of files that works.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import CONTENTS, HUGE, QWEN3, ROOT, SPECIAL, TEXTS, command, folder

VALUES = (*HUGE, *TEXTS[:3])
"""What a field is set to."""
PATTERNS = ("([a-z0-9_.]+)+!", "(" * 500, "(" * 100_000, "a{99999999999}", "(?P<x>a)(?P<x>b)", "x" * 100_000)
"""Regular expressions that take forever, or are none."""
SHORT = ("--max-model-len", "64")

Act = Callable[[Path], object]
Change = tuple[str, Act]
"""The name of a change, and the act that tries it in an empty folder."""


def drafts() -> Iterator[Change]:
    """EAGLE3 heads whose config.json or weights are wrong, and settings of `--speculative-config`."""
    for format, field in _fields(
        {
            "qwen3-eagle3": (
                "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                "draft_vocab_size", "target_hidden_size", "eagle_config", "hidden_act", "model_type",
            ),
            "qwen3-eagle3-speculators": (
                "speculators_model_type", "transformer_layer_config", "draft_vocab_size",
                "norm_before_residual", "eagle_aux_hidden_state_layer_ids", "speculators_config",
            ),
        }
    ):  # fmt: skip
        for value in VALUES:
            yield f"{format}: {field}={value!r:.20}", lambda p, h=format, c={field: value}: head(p, h, c)
    for file in ("config.json", "model.safetensors"):
        for name, content in (*CONTENTS.items(), *SPECIAL.items()):
            yield f"{file}: {name}", lambda p, f=file, c=content: head(p, "qwen3-eagle3", {}, f, c)
    for field in ("method", "model", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
        for value in VALUES:
            settings = {"method": "ngram", "num_speculative_tokens": 2, field: value}
            yield f"speculative_config: {field}={value!r:.20}", lambda p, s=settings: speculate(s)


def adapters() -> Iterator[Change]:
    """Adapters whose adapter_config.json or weights are wrong."""
    for field in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "layers_to_transform",
                  "peft_type", "bias", "exclude_modules", "fan_in_fan_out"):  # fmt: skip
        patterns = [{pattern: 4} for pattern in PATTERNS]
        for value in (*VALUES, *PATTERNS, *patterns):
            yield f"{field}={value!r:.20}", lambda p, c={field: value}: adapter(p, c)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        for name, content in (*CONTENTS.items(), *SPECIAL.items()):
            yield f"{file}: {name}", lambda p, f=file, c=content: adapter(p, {}, f, c)


def embedders() -> Iterator[Change]:
    """Files of Sentence Transformers that are wrong."""
    for file in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        for name, content in (*CONTENTS.items(), *SPECIAL.items()):
            yield f"{file}: {name}", lambda p, f=file, c=content: embed(p, f, c)
    for field in ("word_embedding_dimension", "pooling_mode_mean_tokens", "pooling_mode", "include_prompt"):
        for value in VALUES:
            text = json.dumps({"word_embedding_dimension": 128, "pooling_mode_cls_token": True, field: value})
            yield (
                f"1_Pooling: {field}={value!r:.20}",
                lambda p, t=text: embed(p, "1_Pooling/config.json", t.encode()),
            )
    for field in ("path", "type", "idx"):
        for value in (*VALUES, "../../..", "/dev"):
            modules = [dict(module) for module in MODULES]
            modules[1][field] = value
            yield (
                f"modules.json: {field}={value!r:.20}",
                lambda p, m=modules: embed(p, "modules.json", json.dumps(m).encode()),
            )


def quantized() -> Iterator[Change]:
    """Quantization settings that are wrong."""
    for copy, path in (
        ("qwen3-w4a16", "config_groups.group_0.weights.num_bits"),
        ("qwen3-w4a16", "config_groups.group_0.weights.group_size"),
        ("qwen3-w4a16", "config_groups.group_0.weights.strategy"),
        ("qwen3-w4a16", "config_groups.group_0.targets"),
        ("qwen3-w4a16", "config_groups.group_0"),
        ("qwen3-w4a16", "config_groups"),
        ("qwen3-w4a16", "ignore"),
        ("qwen3-w4a16", "format"),
        ("qwen3-gptq", "bits"),
        ("qwen3-gptq", "group_size"),
        ("qwen3-gptq", "desc_act"),
        ("qwen3-awq", "group_size"),
        ("qwen3-fp8", "weight_block_size"),
        ("qwen3-fp8", "modules_to_not_convert"),
        ("qwen3-fp8", "quant_method"),
    ):
        for value in VALUES:
            yield f"{copy}: {path}={value!r:.20}", lambda p, c=copy, f=path, v=value: requantize(p, c, f, v)
    for pattern in PATTERNS:
        for path in ("ignore", "config_groups.group_0.targets"):
            yield (
                f"{path}: {pattern:.20}",
                lambda p, f=path, v=[f"re:{pattern}"]: requantize(p, "qwen3-w4a16", f, v),
            )


def machines() -> Iterator[Change]:
    """Machine files of `--assume` that are wrong."""
    for name, content in (*CONTENTS.items(), *SPECIAL.items()):
        yield f"file: {name}", lambda p, c=content: machine(p, c)
    for field in ("platform", "has_triton", "compute_capability", "device_count", "override", "wsl", "x"):
        for value in VALUES:
            yield (
                f"{field}={value!r:.20}",
                lambda p, f=field, v=value: machine(p, json.dumps({f: v}).encode()),
            )


def repositories() -> Iterator[Change]:
    """Files that `dodona upgrade` finds in a repository."""
    texts = {
        **{name: content.decode("latin-1") for name, content in CONTENTS.items()},
        "quote that stays open": "vllm serve 'x --tensor-parallel-size 2\n",
        "escape": "vllm serve \x1b[2J --dtype \u202eauto\n",
        "long line": "vllm serve m " + "--x y " * 100_000,
        "many lines": "vllm serve m \\\n" * 20_000,
        "many commands": "vllm serve m\n" * 3_000,
        "json": "vllm serve m --speculative-config '" + "{" * 5_000 + "'\n",
        "variables": "A=$A$A\nvllm serve $A ${A:-${A:-$A}} $(vllm serve $A)\n",
        "aliases": "a: &a [vllm, serve, m]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
        "deep YAML": "".join(" " * i + "a:\n" for i in range(500)),
        "tag": "!!python/object/apply:os.system [vllm serve]\n",
        "secret": "vllm serve https://user:pass@host/m --api-key SECRET\n",
    }
    for file in ("serve.sh", "Dockerfile", "compose.yaml", "values.yaml", "vllm.service", "deploy.json"):
        for name, text in texts.items():
            yield f"{file}: {name}", lambda p, f=file, t=text: upgrade(p, f, t.encode("utf-8", "replace"))
        for name, make in SPECIAL.items():
            yield f"{file}: {name}", lambda p, f=file, m=make: upgrade(p, f, m)


MODULES = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
)


def _fields(of: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for name, fields in of.items():
        for field in fields:
            yield name, field


def put(file: Path, content: bytes | Act) -> None:
    """Make a file of some bytes, or of another kind."""
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    if callable(content):
        content(file)
    else:
        file.write_bytes(content)


def head(path: Path, name: str, changes: dict[str, Any], file: str = "", content: bytes | Act = b"") -> None:
    """Qwen3 with a changed head."""
    folder(path, changes, ROOT / "checkpoints" / name)
    if file:
        put(path / file, content)
    speculate({"method": "eagle3", "model": str(path), "num_speculative_tokens": 2})


def speculate(settings: dict[str, Any]) -> None:
    """A generation with these settings of speculation."""
    words = ["generate", str(QWEN3), "--prompt", "1 + 1", "--max-tokens", "4", *SHORT]
    command([*words, "--speculative-config", json.dumps(settings)])


def adapter(path: Path, changes: dict[str, Any], file: str = "", content: bytes | Act = b"") -> None:
    """Qwen3 with a changed adapter."""
    import torch
    from safetensors.torch import save_file

    from dodona import LLM, LoRARequest, SamplingParams
    from dodona.oracle.errors import ConfigError

    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.zeros(4, 128), f"{layer}.lora_B.weight": torch.zeros(256, 4)},
        path / "adapter_model.safetensors",
    )
    told = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [layer.removeprefix("base_model.model.")],
        **changes,
    }
    (path / "adapter_config.json").write_text(json.dumps(told))
    if file:
        put(path / file, content)
    params = SamplingParams(temperature=0.0, max_tokens=2)
    with LLM(QWEN3, device="cpu", max_model_len=64, num_gpu_blocks_override=16, enable_lora=True) as llm:
        try:
            (output,) = llm.generate("1 + 1", params, lora_request=LoRARequest("a", 1, str(path)))
            if output.error is not None:
                raise ConfigError(output.error)
        finally:
            (after,) = llm.generate("1 + 1", params)
            assert after.error is None


def embed(path: Path, file: str, content: bytes | Act) -> None:
    """Qwen3 as a model of Sentence Transformers, with one file changed."""
    folder(path, {})
    (path / "1_Pooling").mkdir()
    put(path / "modules.json", json.dumps(MODULES).encode())
    put(
        path / "1_Pooling/config.json", b'{"word_embedding_dimension": 128, "pooling_mode_mean_tokens": true}'
    )
    put(path / file, content)
    command(["embed", str(path), "--prompt", "1 + 1", *SHORT])


def requantize(path: Path, copy: str, dotted: str, value: object) -> None:
    """A quantized copy of Qwen3 with one setting changed."""
    source = ROOT / "checkpoints" / copy
    settings = json.loads((source / "config.json").read_text())["quantization_config"]
    *parents, last = dotted.split(".")
    inner = settings
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    folder(path, {"quantization_config": settings}, source)
    command(["generate", str(path), "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])


def machine(path: Path, content: bytes | Act) -> None:
    """A choice for the machine of a file."""
    put(path / "machine.yaml", content)
    command(["select", str(QWEN3), "--assume", str(path / "machine.yaml")])


def upgrade(path: Path, file: str, content: bytes | Act) -> None:
    """A repository with one file; nothing of it reaches the terminal raw."""
    put(path / file, content)
    (path / "good.sh").write_text("vllm serve Qwen/Qwen3-0.6B\n")
    for format in ("text", "json"):
        said = command(
            ["upgrade", "--from", "vllm/0.24.0", "--to", "vllm/0.33.0", "--format", format, str(path)]
        )
        assert "good.sh" in said, "one bad file hides a good one"
        assert "SECRET" not in said
        assert "user:pass" not in said
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said)
