"""A trial load: what it finds, in which words, that it finds nothing else, and what it takes."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import DodonaError
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.meta_device import META, NeedsValues, on_meta
from dodona.runners.trial_load import MOST_LAYERS, try_load, why_untried
from tests.support import damaged_models
from tests.support.permitted import CHECKPOINTS, HEADS, installed_families, pooling_models
from tests.support.tiny_models import TinyModels

SMALL: Mapping[str, Any] = {"device": "cpu", "max_model_len": 16, "num_gpu_blocks_override": 8}
FEW = ("llama", "gemma2", "gpt2", "gpt-oss", "deepseek-v3", "mamba", "lfm2", "qwen3-next", "zaya")
"""Families that stand for the others, which `python -m tests.support.permitted` looks at."""


def permitted(model: Path, **flat: Any) -> Verdict:
    return select_runner(EngineConfig.from_flat(str(model), **SMALL, **flat))


def damaged(tiny: TinyModels, family: str, kind: str, tmp_path: Path) -> Path:
    copy = damaged_models.copy(tiny.path(family), tmp_path / "model")
    damaged_models.DAMAGES[kind](copy)
    return copy


def select(*words: str) -> Any:
    result = CliRunner().invoke(app, ["select", *words], env={"DODONA_USE_V2_MODEL_RUNNER": None})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("family", sorted({*FEW} & {*installed_families()}))
def test_nothing_is_found_in_a_whole_model(family: str, tiny_models: TinyModels) -> None:
    path = tiny_models.path(family)
    try_load(permitted(path))
    try_load(permitted(path, load_format="dummy"))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("gemma3n", "lost norm"),
        ("qwen3-next", "reshaped"),
        ("mamba", "lost projection"),
        ("gpt-oss", "twice the feed-forward"),
        ("qwen2-moe", "lost head"),
        ("phi3", "odd heads"),
        ("mistral", "no such tokenizer class"),
    ],
)
def test_what_the_rules_cannot_know_is_found_in_the_words_of_a_start(
    family: str, kind: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    found_as_by_a_start(permitted(damaged(tiny_models, family, kind, tmp_path)))


def found_as_by_a_start(verdict: Verdict) -> None:
    with pytest.raises(DodonaError) as tried:
        try_load(verdict)
    with pytest.raises(DodonaError) as started:
        LLM.from_verdict(verdict)
    assert str(tried.value) == str(started.value)
    assert type(tried.value) is type(started.value)


@pytest.mark.parametrize(("which", "kind"), [(0, "attention of flash"), (1, "odd heads"), (1, "reshaped")])
def test_of_a_pooling_model(which: int, kind: str, tmp_path: Path) -> None:
    model = damaged_models.copy(pooling_models(tmp_path / "models")[which], tmp_path / "model")
    try_load(permitted(model))
    damaged_models.DAMAGES[kind](model)
    found_as_by_a_start(permitted(model))


@pytest.mark.parametrize("name", ["qwen3-w4a16", "qwen3-gptq", "qwen3-fp8"])
def test_of_a_quantized_model(name: str, tmp_path: Path) -> None:
    model = damaged_models.copy(CHECKPOINTS / name, tmp_path / "model")
    try_load(permitted(model))
    tensors = load_file(model / damaged_models.WEIGHTS)
    scale = next(n for n in sorted(tensors) if n.rpartition(".")[2].startswith(("scales", "weight_scale")))
    save_file({**tensors, scale: tensors[scale][:-1].clone()}, model / damaged_models.WEIGHTS)
    found_as_by_a_start(permitted(model))


@pytest.mark.parametrize("kind", ["lost norm", "reshaped", "extra tensor"])
def test_of_a_draft_head(kind: str, tmp_path: Path) -> None:
    head = damaged_models.copy(CHECKPOINTS / HEADS[0], tmp_path / "head")
    speculative = {"model": str(head), "num_speculative_tokens": 2}
    try_load(permitted(CHECKPOINTS / "qwen3", speculative_config=speculative))
    damaged_models.DAMAGES[kind](head)
    found_as_by_a_start(permitted(CHECKPOINTS / "qwen3", speculative_config=speculative))


def test_a_lost_tensor_is_said_on_the_command_line(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = str(damaged(tiny_models, "gemma3n", "lost norm", tmp_path))
    table = select(model, "--device", "cpu")
    assert table.exit_code == 2
    assert "v1" in table.stdout.splitlines()[0]  # the verdict
    assert "the safetensors lack 1 weights of the model" in table.stderr
    as_json = select(model, "--device", "cpu", "--json")
    data = json.loads(as_json.stdout)
    assert as_json.exit_code == 2
    assert data["runner"] == "v1"
    assert data["trial_load"] == {"error": table.stderr.removeprefix("dodona: ").strip(), "untried": None}
    assert select(model, "--device", "cpu", "--no-trial-load").exit_code == 0


def test_a_model_that_loads_is_said_too(tiny_models: TinyModels) -> None:
    path = str(tiny_models.path("llama"))
    table = select(path, "--device", "cpu")
    assert (table.exit_code, table.stderr) == (0, "")
    assert "loaded without its weights" in table.stdout
    data = json.loads(select(path, "--device", "cpu", "--json").stdout)
    assert data.pop("trial_load") == {"error": None, "untried": None}
    assert Verdict.model_validate(data).runner == "v1"


@pytest.mark.parametrize("words", [("--assume", "cpu"), ("--assume-gpu",), ("--rulebook", "vllm/0.25.1")])
def test_other_machines_and_engines_load_nothing(words: tuple[str, ...], tiny_models: TinyModels) -> None:
    model = str(tiny_models.path("llama"))
    assert "loaded" not in select(model, *words).stdout
    assert "trial_load" not in json.loads(select(model, *words, "--json").stdout)


def test_what_can_not_be_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = permitted(CHECKPOINTS / "qwen3")
    assert why_untried(verdict) is None
    monkeypatch.setattr("dodona.runners.trial_load.has_package", lambda name: name != "transformers")
    assert why_untried(verdict) == "transformers is not installed here"
    table = select(str(CHECKPOINTS / "qwen3"), "--device", "cpu")
    assert table.exit_code == 0
    assert "The load was not tried: transformers is not installed here." in table.stdout


HUGE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "vocab_size": 131072,
    "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8, "num_hidden_layers": 20,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


def huge_checkpoint(folder: Path) -> Path:
    """A Llama of 135 GB of weights in files of one layer each, which are holes but for their headers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HUGE))
    size, inner = HUGE["hidden_size"], HUGE["intermediate_size"]
    layer = {
        "self_attn.q_proj": (size, size), "self_attn.k_proj": (1024, size), "self_attn.v_proj": (1024, size),
        "self_attn.o_proj": (size, size), "mlp.gate_proj": (inner, size), "mlp.up_proj": (inner, size),
        "mlp.down_proj": (size, inner), "input_layernorm": (size,), "post_attention_layernorm": (size,),
    }  # fmt: skip
    files = {
        f"model-{i}.safetensors": {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        for i in range(HUGE["num_hidden_layers"])
    }
    outer = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (HUGE["vocab_size"], size))
    files["model-outer.safetensors"] = {**outer, "model.norm.weight": (size,)}
    for name, shapes in files.items():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in shapes.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    places = {tensor: name for name, shapes in files.items() for tensor in shapes}
    (folder / damaged_models.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def peak_memory() -> int:
    """Bytes that the process had in memory at most since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def test_weights_of_many_gigabytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dodona.oracle.machine.memory", "dodona.runners.machine"):
        monkeypatch.setattr(f"{module}.host_memory", lambda: 1000.0)
    model = huge_checkpoint(tmp_path / "huge")
    flat = {**SMALL, "skip_tokenizer_init": True, "dtype": "float32"}
    verdict = select_runner(EngineConfig.from_flat(str(model), **flat))
    peak_memory()
    before = peak_memory()
    try_load(verdict)
    assert peak_memory() - before < 200 << 20


def test_code_on_meta_keeps_small_integers_and_nothing_else() -> None:
    with on_meta():
        assert torch.arange(3, device="cpu").tolist() == [0, 1, 2]
        assert torch.zeros(2, 3, device="cpu").is_meta
        assert torch.zeros(2, 3).to("cpu").is_meta
        assert (torch.zeros(2, 3, device="cpu")[torch.tensor([1])] + torch.ones(3)).shape == (1, 3)
        assert torch.zeros(1 << 21, dtype=torch.int8).is_meta
        with pytest.raises(NeedsValues):
            torch.zeros(3, device="cuda").sum().item()
        with pytest.raises(RuntimeError, match="reduction dim"):
            torch.zeros(2, 3, device="cpu") @ torch.zeros(2, 3)
    assert not torch.zeros(3, device="cpu").is_meta
    assert META.type == "meta"


def test_what_has_no_values_is_zero_where_code_asks() -> None:
    with on_meta() as meta:
        known, weights = torch.tensor([2, 0]), torch.zeros(3, 4, device="cpu")
        assert known.tolist() == [2, 0]
        with pytest.raises(RuntimeError, match="split"):
            weights.split([1, 1])
        assert not meta.has_guessed
        mask = weights > 0
        assert weights[mask].shape == (0,)
        assert weights[mask[:, 0]].shape == (0, 4)
        assert weights[None, :, mask[0]].shape == (1, 3, 0)
        weights[mask[:, 0]] = torch.zeros(0, 4)
        assert meta.has_guessed
        sizes = mask.long().sum(0).tolist()
        assert sizes == [0, 0, 0, 0]
        assert [len(part) for part in weights.split(sizes)] == [0, 0, 0, 3]
        assert [len(part) for part in torch.split(weights.T, sizes, dim=1)] == [4] * 4
        assert [len(part) for part in weights.split(2)] == [2, 1]
        with pytest.raises(NeedsValues):
            weights.tolist()


def test_a_model_that_takes_long_is_left_alone(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.path("llama")
    monkeypatch.setattr("dodona.runners.meta_device.MOST_CALLS", 100)
    assert "calls of torch" in (try_load(permitted(path)) or "")
    found = select(str(path), "--device", "cpu", "--max-model-len", "16")
    assert found.exit_code == 0
    assert "The load was not tried: the model takes more than" in found.output


def test_layers_without_end_are_not_loaded(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": MOST_LAYERS + 1}))
    found = select(str(path), "--device", "cpu", "--max-model-len", "16", "--load-format", "dummy", "--json")
    assert found.exit_code == 0
    assert f"{MOST_LAYERS + 1} are more" in json.loads(found.stdout)["trial_load"]["untried"]


def test_errors_that_speak_of_metadata_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("the metadata of the tensor is wrong")

    monkeypatch.setattr("dodona.runners.meta_device._call", fails)
    with pytest.raises(RuntimeError, match="metadata"), on_meta():
        torch.zeros(1)


def test_tensors_without_end_are_not_loaded(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    monkeypatch.setattr("dodona.runners.trial_load.MOST_TENSORS", 5)
    found = select(str(path), "--device", "cpu", "--max-model-len", "16", "--json")
    assert found.exit_code == 0
    assert "tensors are more than the 5 that it takes" in json.loads(found.stdout)["trial_load"]["untried"]
