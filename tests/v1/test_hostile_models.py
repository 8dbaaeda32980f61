"""Model directories that are broken or hostile: a named error, and nothing of transformers raw."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dodona import LLM, SamplingParams
from dodona.oracle.errors import DodonaError
from dodona.oracle.models.stored_tensors import stored_tensors

ROOT = Path(__file__).resolve().parents[2]
QWEN3 = ROOT / "checkpoints/qwen3"


def model(folder: Path, **changes: Any) -> Path:
    """A copy of the small Qwen3's directory, by links, with changes of its config.json (None: left out)."""
    for file in QWEN3.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((QWEN3 / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "no_such_activation"},
        {"rope_parameters": {"rope_type": "no_such_rope", "rope_theta": 1e4}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["no_such_attention"] * 4},
        {"num_attention_heads": 7},
        {"pad_token_id": 10**9},
        {"model_type": "no_such_type"},
        {"vocab_size": "many"},
        {"initializer_range": "wide"},
        {"rms_norm_eps": None, "hidden_size": 1},
        {"dtype": "no_such_dtype"},
    ],
)
def test_a_config_that_transformers_cant_take_is_a_named_error(tmp_path: Path, changes) -> None:
    with pytest.raises(DodonaError) as caught:
        LLM(model(tmp_path, **changes), max_model_len=64, num_gpu_blocks_override=16, device="cpu")
    said = str(caught.value)
    assert len(said) < 1500
    assert not said.startswith("tokenizer:"), said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}', "tokenizer"),
        ("tokenizer.json", b"[[[[", "tokenizer"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}', "tokenizer"),
        ("model.safetensors", b"\xff" * 64, "safetensors"),
        ("model.safetensors", b"", "safetensors"),
        ("generation_config.json", b'{"temperature": "warm"}', "temperature"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    folder = model(tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(DodonaError, match=said):
        LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DodonaError, match=f"{name}: is a pipe"):
        LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu")


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/tmp/outside.safetensors", "pytorch_model.bin", 3, None]
)
def test_an_index_leads_nowhere_else(tmp_path: Path, shard: object) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DodonaError, match="bare name"):
        LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu")


@pytest.mark.parametrize("more", [{}, {"metadata": []}, {"metadata": None}], ids=str)
def test_an_index_needs_no_metadata(tmp_path: Path, more: dict[str, object]) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(stored_tensors(QWEN3), "a.safetensors"), **more}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu") as llm:
        assert llm.generate("What is 1 + 1?", SamplingParams(temperature=0.0))[0].outputs[0].text == " 2"


def test_config_json_names_no_other_weights(tmp_path: Path) -> None:
    folder = model(tmp_path, transformers_weights="other.safetensors.index.json")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../outside.safetensors"}}
    (folder / "other.safetensors.index.json").write_text(json.dumps(index))
    with LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu") as llm:
        assert llm.generate("What is 1 + 1?", SamplingParams(temperature=0.0))[0].outputs[0].text == " 2"


def test_generation_defaults_as_transformers_takes_them(tmp_path: Path, caplog) -> None:
    folder = model(tmp_path)
    (folder / "generation_config.json").unlink()
    values = {"top_k": 50.0, "top_p": 0, "no_repeat_ngram_size": 3, "num_beams": 1, "max_new_tokens": 9.0}
    values |= {"do_sample": False, "stop_strings": ["x"], "num_return_sequences": 1}
    (folder / "generation_config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(values).encode())
    with LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu") as llm:
        params = llm.get_default_sampling_params()
    assert (params.top_k, params.max_tokens) == (50, 9)
    assert 0 < params.top_p < 1e-5
    assert "no effect here: do_sample=False, stop_strings=['x'], no_repeat_ngram_size=3" in caplog.text


def test_logits_that_are_nan_end_the_request_with_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model(tmp_path)
    weights = load_file(QWEN3 / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DodonaError, match="self-check"):  # it sees that, too
        LLM(folder, max_model_len=64, num_gpu_blocks_override=16, device="cpu")
    with LLM(QWEN3, max_model_len=64, num_gpu_blocks_override=64, device="cpu") as llm:
        assert llm.generate("What is 1 + 1?")[0].error is None
        llm.collective_rpc("load_weights", [list(weights.items())])
        masks = [
            SamplingParams(),
            SamplingParams(min_tokens=2),
            SamplingParams(bad_words=["a"]),
            SamplingParams(allowed_token_ids=[5, 6]),
            SamplingParams(structured_outputs={"choice": ["yes", "no"]}),
        ]
        for output in llm.generate(["What is 1 + 1?"] * len(masks), masks):
            assert output.outputs[0].finish_reason == "error"
            assert output.outputs[0].token_ids == []
            assert "NaN or all -inf" in (output.error or "")
