"""Hostile folders of the corpus that `dodona select` tries to load: sizes that no weights are compared with,
and code that must not run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import QWEN3, command, folder
from tests.support.hostile_parts import Change

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 131, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4,
    "vocab_size": 131, "n_positions": 256, "n_inner": 48,
}  # fmt: skip
BERT = {**LLAMA, "model_type": "bert", "architectures": ["BertModel"]}
MIXTRAL = {
    **LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4,
    "num_experts_per_tok": 2, "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT, "mixtral": MIXTRAL}
SIZES = (100_000, 2**31 - 1, 3, 0, -1)

CODE = "open({marker!r}, 'w')\n"
AUTO_MAP = {
    "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForCausalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}  # fmt: skip
CODE_IN: dict[str, dict[str, Any]] = {
    "a known type": {"auto_map": AUTO_MAP},
    "an unknown type": {"auto_map": AUTO_MAP, "model_type": "evil", "architectures": ["Evil"]},
    "a tokenizer": {"tokenizer_class": "evil.Evil"},
    "attention": {"_attn_implementation": "evil/attention", "attn_implementation": "evil/attention"},
    "experts": {"_experts_implementation": "evil/experts"},
    "another folder": {"_name_or_path": "evil"},
    "a library": {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": ["x"]}},
}


def trials() -> Iterator[Change]:
    """Folders that rules permit, or that they can't judge."""
    for family, config in FAMILIES.items():
        for field, value in config.items():
            for size in SIZES if type(value) is int else ():
                yield f"{family}: {field}={size}", lambda p, c={**config, field: size}: sizes(p, c)
    for name, changes in CODE_IN.items():
        for verb in ("select", "generate", "embed"):
            yield f"code in {name}: {verb}", lambda p, c=changes, v=verb: code(p, c, v)
    for file in ("pytorch_model.bin", "model.safetensors", "adapter_model.bin", "training_args.bin"):
        yield f"pickle: {file}", lambda p, f=file: pickled(p, f)


def sizes(path: Path, config: dict[str, Any]) -> None:
    """A choice with random weights."""
    (path / "config.json").write_text(json.dumps(config))
    command(["select", str(path), "--load-format", "dummy", "--skip-tokenizer-init"])


def code(path: Path, changes: dict[str, Any], verb: str) -> None:
    """A model that brings code, which nobody asked for."""
    marker = path / "ran"
    model = path / "model"
    model.mkdir()
    folder(model, changes)
    for name in ("evil.py", "tokenization_evil.py", "__init__.py"):
        (model / name).write_text(CODE.format(marker=str(marker)))
    told = json.loads((QWEN3 / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({**told, "auto_map": AUTO_MAP}))
    more = ["--prompt", "1 + 1"] if verb != "select" else []
    try:
        command([verb, str(model), *more, "--max-model-len", "64"])
    finally:
        assert not marker.exists(), "code ran"


class _Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def pickled(path: Path, file: str) -> None:
    """A model with a pickle among its files, or in place of its weights."""
    marker = path / "ran"
    model = path / "model"
    model.mkdir()
    folder(model, {})
    if file != "training_args.bin":
        (model / "model.safetensors").unlink()
    (model / file).write_bytes(pickle.dumps(_Payload(str(marker))))
    try:
        command(["select", str(model)])
    finally:
        assert not marker.exists(), "code ran"
