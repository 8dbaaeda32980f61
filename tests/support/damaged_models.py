"""Copies of model folders in which something is wrong, or only unusual: each kind of damage by a name."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def copy(source: Path, folder: Path) -> Path:
    """A copy of a model folder, its weights in one file."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    tensors: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    _save(folder, tensors)
    return folder


def _save(folder: Path, tensors: Mapping[str, Any]) -> None:
    save_file({name: t.clone() for name, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _only_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _only_gguf(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(60))


def _cut_off(folder: Path) -> None:
    file = folder / WEIGHTS
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size - 100)


def _empty_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def _long_header(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw) * 2) + raw[8:])


def _change_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def _first(header: Mapping[str, Any]) -> Any:
    return header[next(name for name in sorted(header) if name != "__metadata__")]


def _lying_offsets(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        _first(header)["data_offsets"][1] += 4

    _change_header(folder, change)


def _lying_shape(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        _first(header)["shape"][0] += 1

    _change_header(folder, change)


def _unknown_dtype(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        _first(header)["dtype"] = "Q4"

    _change_header(folder, change)


def _no_json_header(folder: Path) -> None:
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[8:12] = b"xxxx"
    (folder / WEIGHTS).write_bytes(bytes(raw))


def _no_metadata(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)


def _shards(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(parts.values())):
        part = {name: tensors[name].clone() for name in names if parts[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    _write_index(folder, parts)
    return parts


def _write_index(folder: Path, parts: Mapping[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def _sharded(folder: Path) -> None:
    _shards(folder)


def _missing_shard(folder: Path) -> None:
    (folder / max(_shards(folder).values())).unlink()


def _index_of_nothing(folder: Path) -> None:
    _shards(folder)
    (folder / INDEX).write_text('{"weight_map": {}}')


def _broken_index(folder: Path) -> None:
    _shards(folder)
    (folder / INDEX).write_text("{")


def _index_names_too_much(folder: Path) -> None:
    parts = _shards(folder)
    _write_index(folder, {**parts, "model.nothing.weight": max(parts.values())})


def _index_names_too_little(folder: Path) -> None:
    parts = _shards(folder)
    _write_index(folder, dict(list(parts.items())[:-1]))


def _lost_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    _save(folder, {name: t for name, t in tensors.items() if ".1." not in name})


def _lost(folder: Path, *parts: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    lost = next((name for name in sorted(tensors) if any(part in name for part in parts)), None)
    _save(folder, {name: t for name, t in tensors.items() if name != lost})


def _lost_projection(folder: Path) -> None:
    _lost(folder, "proj", "dense", "attn")


def _lost_norm(folder: Path) -> None:
    _lost(folder, "norm", "ln_", "LayerNorm")


def _lost_embedding(folder: Path) -> None:
    _lost(folder, "embed_tokens", "wte", "word_embeddings", "embed_in")


def _lost_head(folder: Path) -> None:
    _lost(folder, "lm_head", "embed_out", "score", "classifier")


def _reshaped(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next((n for n in sorted(tensors) if tensors[n].ndim == 2 and "proj" in n), sorted(tensors)[0])
    tensors[name] = tensors[name][:-1]
    _save(folder, tensors)


def _extra_tensor(folder: Path) -> None:
    _save(folder, {**load_file(folder / WEIGHTS), "model.extra.weight": torch.zeros(3)})


def _whole_numbers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[0]
    _save(folder, {**tensors, name: tensors[name].to(torch.int64)})


def _half(folder: Path) -> None:
    _save(folder, {name: t.to(torch.bfloat16) for name, t in load_file(folder / WEIGHTS).items()})


def _folder_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def _dangling_link(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nothing")


def _linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "blob")
    (folder / WEIGHTS).symlink_to(folder / "blob")


def _pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _unreadable(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0)


def _config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    inner = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    for field, value in changes.items():
        inner[field] = value(inner.get(field)) if callable(value) else value
    (folder / "config.json").write_text(json.dumps(raw))


def _more(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else value


def _twice(value: Any) -> Any:
    return 2 * value if isinstance(value, int) else value


_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "more layers": {"num_hidden_layers": _more},
    "fewer layers": {"num_hidden_layers": 1},
    "no layers": {"num_hidden_layers": 0},
    "larger vocabulary": {"vocab_size": _more},
    "twice as wide": {"hidden_size": _twice},
    "twice the feed-forward": {"intermediate_size": _twice},
    "odd heads": {"num_attention_heads": 3},
    "odd kv heads": {"num_key_value_heads": 3},
    "odd head size": {"head_dim": 7},
    "no such activation": {"hidden_act": "nonsense"},
    "another activation": {"hidden_act": "relu"},
    "no such rope": {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
    "half a yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biased": {"attention_bias": True},
    "padding beyond": {"pad_token_id": 10**6},
    "no positions": {"max_position_embeddings": None},
    "layer types too few": {"layer_types": ["full_attention"]},
    "no such layer type": {"layer_types": ["nonsense", "nonsense"]},
    "no such dtype": {"dtype": "float8_e4m3fn"},
    "double": {"dtype": "float64"},
    "of bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "of fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}},
    "of gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}},
    "of nothing": {"quantization_config": {"quant_method": "nonsense"}},
    "mtp layers": {"num_nextn_predict_layers": 1, "mtp_num_hidden_layers": 1},
    "one label": {"num_labels": 1},
    "five labels": {"id2label": {str(i): f"L{i}" for i in range(5)}},
    "labels with a gap": {"id2label": {"0": "a", "2": "b"}},
    "two types": {"problem_type": "nonsense"},
    "no such type": {"model_type": "nonsense"},
    "remote code": {"auto_map": {"AutoModelForCausalLM": "modeling_nothing.Model"}},
    "attention of flash": {"_attn_implementation": "flash_attention_2"},
}


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).write_text(text), None][1]


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def _only_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text("{}")


def _sentence(*kinds: str, pooling: str = '{"pooling_mode_mean_tokens": true}') -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        modules = []
        for index, kind in enumerate(kinds):
            path = "" if kind == "Transformer" else f"{index}_{kind}"
            modules.append({"idx": index, "name": str(index), "path": path,
                            "type": f"sentence_transformers.models.{kind}"})  # fmt: skip
            (folder / path).mkdir(exist_ok=True)
            if kind == "Pooling":
                (folder / path / "config.json").write_text(pooling)
            if kind == "Dense":
                dense = {"in_features": 32, "out_features": 8, "bias": False}
                (folder / path / "config.json").write_text(json.dumps(dense))
        (folder / "modules.json").write_text(json.dumps(modules))

    return write


def _dense(shape: tuple[int, int] | None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        _sentence("Transformer", "Pooling", "Dense", "Normalize")(folder)
        if shape is not None:
            save_file({"linear.weight": torch.ones(shape)}, folder / "2_Dense" / WEIGHTS)

    return write


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "no weights": _without_weights,
    "only pytorch_model.bin": _only_bin,
    "only gguf": _only_gguf,
    "cut off": _cut_off,
    "empty weights": _empty_weights,
    "long header": _long_header,
    "lying offsets": _lying_offsets,
    "lying shape": _lying_shape,
    "unknown dtype": _unknown_dtype,
    "no JSON header": _no_json_header,
    "no metadata": _no_metadata,
    "sharded": _sharded,
    "missing shard": _missing_shard,
    "index of nothing": _index_of_nothing,
    "broken index": _broken_index,
    "index names too much": _index_names_too_much,
    "index names too little": _index_names_too_little,
    "lost layer": _lost_layer,
    "lost projection": _lost_projection,
    "lost norm": _lost_norm,
    "lost embedding": _lost_embedding,
    "lost head": _lost_head,
    "reshaped": _reshaped,
    "extra tensor": _extra_tensor,
    "whole numbers": _whole_numbers,
    "half": _half,
    "folder of weights": _folder_of_weights,
    "dangling link": _dangling_link,
    "linked": _linked,
    "pipe": _pipe,
    "unreadable": _unreadable,
    **{name: (lambda folder, c=changes: _config(folder, **c)) for name, changes in _CONFIGS.items()},
    "no tokenizer": _no_tokenizer,
    "only tokenizer_config": _only_tokenizer_config,
    "broken tokenizer": _text("tokenizer.json", "{"),
    "tokenizer of nothing": _text("tokenizer.json", '{"version": "1.0", "model": {"type": "Nonsense"}}'),
    "broken tokenizer_config": _text("tokenizer_config.json", "{"),
    "no such tokenizer class": _text("tokenizer_config.json", '{"tokenizer_class": "Nonsense"}'),
    "tokenizer_config is a list": _text("tokenizer_config.json", "[]"),
    "broken special tokens": _text("special_tokens_map.json", "{"),
    "broken added tokens": _text("added_tokens.json", "{"),
    "broken generation_config": _text("generation_config.json", "{"),
    "generation_config is a list": _text("generation_config.json", "[]"),
    "hot generation_config": _text("generation_config.json", '{"temperature": -3}'),
    "sampling nonsense": _text("generation_config.json", '{"top_p": "x"}'),
    "wrong end": _text("generation_config.json", '{"eos_token_id": "x"}'),
    "beams": _text("generation_config.json", '{"num_beams": 4, "do_sample": false}'),
    "broken template": _text("chat_template.jinja", "{% if %}"),
    "broken modules": _text("modules.json", "{"),
    "mean": _sentence("Transformer", "Pooling"),
    "no pooling mode": _sentence("Transformer", "Pooling", pooling="{}"),
    "unknown module": _sentence("Transformer", "Nonsense"),
    "wrong order": _sentence("Pooling", "Transformer"),
    "dense": _dense((8, 32)),
    "dense without weights": _dense(None),
    "dense of another shape": _dense((8, 31)),
    "broken length": _text("sentence_bert_config.json", '{"max_seq_length": "x"}'),
    "adapter": _adapter,
    "quantize_config": _text("quantize_config.json", '{"bits": 4, "group_size": 16}'),
    "hf_quant_config": _text("hf_quant_config.json", "{}"),
}  # fmt: skip
"""By name, what is changed in a copy of a model folder. Some of it makes no difference to an engine."""
