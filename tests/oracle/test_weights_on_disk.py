"""What the files of a model's weights tell before anything is loaded, and that an engine says the same."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dodona.oracle import UnsupportedConfiguration, select_runner
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.stored_tensors import file_tensors, stored_tensors
from dodona.oracle.models.weight_files import MAX_TENSORS
from dodona.oracle.systems.own import weights
from dodona.oracle.systems.own.weights import weights_fault
from dodona.runners.llm import LLM
from dodona.runners.safetensors_file import open_safetensors
from tests.support.damaged_models import DAMAGES, copy

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
HERE = Environment(has_triton=False, platform="cpu", is_here=True)
ELSEWHERE = Environment(has_triton=False, platform="cpu")

REFUSED = {
    "no weights": "weights are read from safetensors",
    "only pytorch_model.bin": "weights are read from safetensors",
    "only gguf": "weights are read from safetensors",
    "cut off": "describes .* bytes, and it has",
    "empty weights": "it has no header",
    "long header": "a header of .* bytes in a file of",
    "lying offsets": "has .* bytes",
    "lying shape": "of shape .* has .* bytes",
    "unknown dtype": "unknown type 'Q4'",
    "no JSON header": "no JSON",
    "missing shard": "names files that are not there",
    "index of nothing": "weight_map",
    "broken index": "not valid JSON",
    "lost layer": "lack 1 of the .* layers",
    "lost projection": "lack 1 weights of the model: layers.0",
    "lost norm": "lack 1 weights of the model: layers.0",
    "lost embedding": "lack 1 weights of the model: embed_tokens",
    "reshaped": "1 weights have other shapes .* instead of",
    "folder of weights": "is a directory",
    "dangling link": "weights are read from safetensors",
    "pipe": "is a pipe",
    "more layers": "lack 1 of the .* layers",
    "larger vocabulary": "embed_tokens.weight .* instead of",
    "twice as wide": "instead of",
    "twice the feed-forward": "mlp.gate_proj.weight .* instead of",
    "odd heads": "self_attn.q_proj.weight .* instead of",
    "biased": "lack .*q_proj.bias",
    "untied": "lack 1 weights of the model: lm_head.weight",
}
PERMITTED = ("sharded", "index names too little", "extra tensor", "half", "linked", "fewer layers")


def fault(folder: Path, environment: Environment = HERE, **flat: Any) -> str | None:
    return weights_fault(EngineConfig.from_flat(str(folder), **flat), ModelInfo.load(folder), environment)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_loaded_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    assert fault(folder) is None
    DAMAGES[kind](folder)
    found = fault(folder)
    assert found is not None
    assert str(folder) in found
    assert re.search(REFUSED[kind], found), found
    assert fault(folder, load_format="dummy") is None


@pytest.mark.parametrize("kind", PERMITTED)
def test_what_makes_no_difference_is_permitted(kind: str, tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    DAMAGES[kind](folder)
    assert fault(folder) is None


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.glob("*/generation_config.json")), ids=str)
def test_every_checkpoint_is_whole(folder: Path) -> None:
    assert fault(folder.parent) is None
    assert fault(folder.parent, runner="pooling") is None


@pytest.mark.parametrize("kind", ["cut off", "lost projection", "missing shard"])
def test_an_engine_refuses_what_the_rules_refuse(kind: str, tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    verdict = select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    DAMAGES[kind](folder)
    with pytest.raises(UnsupportedConfiguration, match=r"\[weights\]"):
        select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    with pytest.raises(ConfigError) as raised:
        LLM.from_verdict(verdict)
    assert str(raised.value) == fault(folder)


def test_a_classifier_must_be_in_the_files(tmp_path: Path) -> None:
    assert "have no classifier" in (fault(CHECKPOINTS / "qwen3", convert="classify") or "")
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    score = tensors["model.embed_tokens.weight"][:2].clone()
    save_file({**tensors, "score.weight": score}, folder / "model.safetensors", metadata={"format": "pt"})
    assert fault(folder, convert="classify") is None
    DAMAGES["five labels"](folder)
    found = fault(folder, convert="classify")
    assert found is not None
    assert "score.weight has [2] classes, and config.json has 5" in found


def test_a_directory_without_weights_serves_for_asking_about_another_machine(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINTS / "qwen3" / "config.json", tmp_path)
    assert fault(tmp_path, ELSEWHERE) is None
    assert "weights are read from safetensors" in (fault(tmp_path) or "")
    verdict = select_runner(EngineConfig.from_flat(str(tmp_path)), environment=ELSEWHERE)
    assert verdict.runner == "v1"


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen3-w4a16", "qwen3-awq", "qwen3-fp8"])
def test_headers_are_read_as_the_library_reads_them(name: str) -> None:
    found = stored_tensors(CHECKPOINTS / name)
    expected = {}
    for file in sorted((CHECKPOINTS / name).glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                part = stored.get_slice(key)
                expected[key] = (part.get_dtype(), tuple(part.get_shape()))
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in found.items()} == expected


_SIZES = st.lists(st.integers(0, 3), max_size=3)
_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "I64", "BOOL", "X", 3]),
        "shape": st.one_of(_SIZES, st.sampled_from(["x", [-1], [1.5], [2**70], [2**62, 8, 0]])),
        "data_offsets": st.one_of(
            st.tuples(st.integers(0, 24), st.integers(0, 24)).map(list), st.sampled_from([[0], None, [0, -4]])
        ),
    }
)


@settings(max_examples=150)
@given(
    header=st.one_of(
        st.dictionaries(st.sampled_from("abc"), st.one_of(_TENSOR, st.just(7)), max_size=3),
        st.just([]),
    ),
    length=st.sampled_from([0, 0, 0, -1, 1, 1 << 40]),
    data=st.integers(0, 24),
)
def test_any_header_is_refused_or_accepted_as_by_the_library(
    header: Any, length: int, data: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", max(0, len(text) + length)) + text + bytes(data))
    try:
        with safe_open(file, framework="pt") as stored:
            library = sorted(stored.keys())
    except SafetensorError:
        library = None
    try:
        found = sorted(file_tensors(file))
    except ConfigError:
        found = None
    assert found == library


def written(file: Path, header: bytes) -> Path:
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    return file


SHAPED = b'{"a":{"dtype":"U8","shape":[%b],"data_offsets":[0,1]}}'
EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (
            b'{"a":{"dtype":"U8","shape":[' + b"9," * 1_000_000 + b'9],"data_offsets":[0,1]}}',
            "at most 64 sizes",
        ),
        (
            b'{"a":{"dtype":"U8","shape":[' + b"9," * 3_000_000 + b'9],"data_offsets":[0,1]}}',
            "3000000 values",
        ),
        (SHAPED % b"4294967296,4294967296", "too many elements"),
        (b'{"' + b"x" * 1_025 + b'":' + EMPTY + b"}", "name of a tensor has 1025 characters"),
        (b'{"a":' + b"[" * 100_000, "no JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "no JSON"),
    ],
    ids=["sizes", "values", "elements", "name", "depth", "digits"],
)
def test_the_work_of_a_header_is_bounded(header: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        file_tensors(written(tmp_path / "model.safetensors", header))


def test_the_headers_of_all_files_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = b'{"a":' + EMPTY + b"}"
    for number in range(3):
        written(tmp_path / f"{number}.safetensors", one)
    places = {f"{number}": f"{number}.safetensors" for number in range(3)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert set(stored_tensors(tmp_path)) == {"a"}
    monkeypatch.setattr("dodona.oracle.models.stored_tensors.MAX_HEADER_BYTES", 3 * len(one) - 1)
    with pytest.raises(ConfigError, match=r"2.safetensors: .* headers of more than"):
        stored_tensors(tmp_path)


MANY = b",".join(b'"t%d":%b' % (i, EMPTY) for i in range(MAX_TENSORS + 1))


@pytest.mark.parametrize("place", [b"data_offsets", b"data_offset\\u0073"], ids=["plain", "escaped"])
def test_tensors_are_counted_by_all_readers(place: bytes, tmp_path: Path) -> None:
    header = b"{" + MANY.replace(b"data_offsets", place) + b"}"
    file = written(tmp_path / "model.safetensors", header)
    expected = f"model.safetensors: has {MAX_TENSORS + 1} tensors, more than {MAX_TENSORS}"
    for read in (file_tensors, lambda file: open_safetensors(file).__enter__()):
        with pytest.raises(ConfigError, match=expected):
            read(file)


def test_plain_tensors_are_counted_before_they_are_made(tmp_path: Path) -> None:
    file = written(tmp_path / "model.safetensors", b"[" + MANY)
    with pytest.raises(ConfigError, match=f"{MAX_TENSORS + 1} tensors"):
        file_tensors(file)


def test_the_tensors_of_all_files_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        written(tmp_path / f"{number}.safetensors", b'{"a%d":%b}' % (number, EMPTY))
    places = {f"a{number}": f"{number}.safetensors" for number in range(3)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    monkeypatch.setattr("dodona.oracle.models.weight_files.MAX_TENSORS", 3)
    assert len(stored_tensors(tmp_path)) == 3
    monkeypatch.setattr("dodona.oracle.models.weight_files.MAX_TENSORS", 2)
    with pytest.raises(ConfigError, match="has 3 tensors, more than 2"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe"])
def test_tensors_that_a_model_does_not_use_are_bounded(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(CHECKPOINTS / model_type, tmp_path / "model")
    assert fault(folder) is None
    monkeypatch.setattr("dodona.oracle.models.expected_tensors.MAX_OF_LAYER", 30)
    monkeypatch.setattr("dodona.oracle.models.expected_tensors.MAX_BESIDE", 40)
    tensors = load_file(folder / "model.safetensors")
    more = {f"x{i}": tensors["model.norm.weight"].clone() for i in range(150)}
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    found = fault(folder)
    assert found is not None
    assert "check that weights and config.json belong together" in found


def test_a_fault_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = copy(CHECKPOINTS / "qwen3", tmp_path / "model"), []
    DAMAGES["lying shape"](folder)
    monkeypatch.setattr(weights, "stored_tensors", lambda path: read.append(path) or stored_tensors(path))
    with pytest.raises(UnsupportedConfiguration, match=r"\[weights\]"):
        select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    assert read == [folder]


def test_a_verdict_reads_headers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = copy(CHECKPOINTS / "qwen3", tmp_path / "model"), []
    monkeypatch.setattr(weights, "stored_tensors", lambda path: read.append(path) or stored_tensors(path))
    select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    assert read == [folder]
