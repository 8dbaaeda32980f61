"""Files that people bring: what is no regular file, too large, too deep or damaged is a named error."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle import files
from dodona.oracle.analysis.replay import read_cases
from dodona.oracle.config.yaml_file import read_arguments
from dodona.oracle.errors import ConfigError, DodonaError
from dodona.oracle.files import parse_json
from dodona.oracle.language.yaml_source import read_yaml
from dodona.oracle.models.config_files import MAX_CONFIG_VALUES
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.weight_files import MAX_TENSORS, read_index, weight_files

READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": ModelInfo.load,
    "arguments.yaml": read_arguments,
    "book.yaml": read_yaml,
    "cases.jsonl": lambda path: list(read_cases(path)),
    "model.safetensors.index.json": read_index,
    "any.json": files.read_json,
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], Any]]:
    return tmp_path / request.param, READERS[request.param]


def test_what_is_no_regular_file_is_named_at_once(reader) -> None:
    path, read = reader
    for make, kind in (
        (lambda: os.mkfifo(path), "pipe"),
        (lambda: path.symlink_to("/dev/zero"), "device"),
        (lambda: path.mkdir(), "directory"),
        (lambda: socket.socket(socket.AF_UNIX).bind(str(path)), "No such device or address"),
    ):
        make()
        with pytest.raises(DodonaError, match=kind) as caught:
            read(path)
        assert str(path) in str(caught.value)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_link_to_itself_and_a_missing_file_are_named(reader) -> None:
    path, read = reader
    path.symlink_to(path)
    for _ in range(2):
        with pytest.raises(DodonaError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        path.unlink(missing_ok=True)


def test_a_size_is_bounded_by_reading_no_more(reader) -> None:
    path, read = reader
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: nothing is stored
    with pytest.raises(DodonaError, match="larger than"):
        read(path)


def test_a_byte_order_mark_is_taken_everywhere(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "config.json").write_bytes(mark + b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 7}')
    assert ModelInfo.load(tmp_path).vocab_size == 7
    (tmp_path / "a.yaml").write_bytes(mark + b"max-model-len: 5\n")
    assert read_arguments(tmp_path / "a.yaml") == {"max_model_len": 5}
    assert read_yaml(tmp_path / "a.yaml").data == {"max-model-len": 5}
    (tmp_path / "c.jsonl").write_bytes(mark + b'{"a": 1}\n')
    assert list(read_cases(tmp_path / "c.jsonl")) == [(1, {"a": 1})]


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, "a: " + "{a: " * 5000, "- " * 10_000])
def test_deep_yaml_is_refused_while_it_is_parsed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="nests deeper"):
        read_arguments(tmp_path / "a.yaml")


def test_wide_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [" + "1, " * 30_000 + "1]")
    with pytest.raises(ConfigError, match="more than 20000 values"):
        read_arguments(tmp_path / "a.yaml")


def test_what_a_compressed_file_grows_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dodona.oracle.analysis.replay.MAX_CASES_BYTES", 1 << 20)
    monkeypatch.setattr("dodona.oracle.analysis.replay.MAX_CASE_BYTES", 1 << 16)
    path = tmp_path / "cases.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 26)))
    with pytest.raises(ConfigError, match="line of more than 65536 bytes"):
        list(read_cases(path))
    path.write_bytes(gzip.compress(b"\n" * (1 << 26)))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes when it is unpacked"):
        list(read_cases(path))
    path.write_bytes(gzip.compress(b"{}\n" * 100)[:-9])
    with pytest.raises(ConfigError, match="damaged"):
        list(read_cases(path))


def test_folders_are_checked_before_libraries_see_them(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "sub.json").mkdir()
    (tmp_path / "pipe.bin").touch()
    files.check_folder(tmp_path, suffixes=(".json",), limit=10)
    (tmp_path / "tokenizer.json").write_text("{}" * 6)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: is larger than 10 bytes"):
        files.check_folder(tmp_path, suffixes=(".json",), limit=10)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: is a pipe"):
        files.check_folder(tmp_path, suffixes=(".json",), limit=10)


# --- the index of weights


def index(folder: Path, value: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "name",
    ["../_outside/model.safetensors", "/etc/passwd", "/x.safetensors", "a/b.safetensors", "..\\b.safetensors",
     "pytorch_model.bin", ".hidden.safetensors", "..", "", "a\0.safetensors", 3, None, ["a.safetensors"], {}],
)  # fmt: skip
def test_an_index_names_bare_safetensors_only(tmp_path: Path, name: object) -> None:
    path = index(tmp_path, {"weight_map": {"a.weight": "model-1.safetensors", "b.weight": name}})
    with pytest.raises(ConfigError, match=r"'b\.weight'.*bare name") as caught:
        weight_files(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [[], None, 3, {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}]
)
def test_what_is_no_index(tmp_path: Path, value: object) -> None:
    index(tmp_path, value)
    with pytest.raises(ConfigError, match="expected an object with a `weight_map`"):
        weight_files(tmp_path)


def test_model_safetensors_comes_before_an_index(tmp_path: Path) -> None:
    index(tmp_path, {"weight_map": {"a": "model-1.safetensors"}})
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    assert [file.name for file in weight_files(tmp_path)] == ["model-1.safetensors"]
    (tmp_path / "nowhere").write_bytes(b"")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_shards_may_be_links_as_in_a_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(b"")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("model-2.safetensors", "model-1.safetensors"):
        (snapshot / name).symlink_to("../blobs/0a")
    index(snapshot, {"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors"}})
    assert [file.name for file in weight_files(snapshot)] == ["model-1.safetensors", "model-2.safetensors"]
    (snapshot / "model-2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"not there: model-2\.safetensors"):
        weight_files(snapshot)
    os.mkfifo(snapshot / "model-2.safetensors")
    with pytest.raises(ConfigError, match="is a pipe"):
        weight_files(snapshot)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="no file can have this name"):
        files.read_bytes(name, limit=10)


def test_a_key_that_is_given_twice_in_a_large_object() -> None:
    text = json.dumps({str(number): 0 for number in range(50_000)})[:-1]
    with pytest.raises(ConfigError, match="the key '49999' is given twice"):
        parse_json(text + ', "49999": 1}', where="x")


def test_an_index_names_a_bounded_number_of_files(tmp_path: Path) -> None:
    path = index(tmp_path, {"weight_map": {f"{i}": f"{i}.safetensors" for i in range(4_097)}})
    with pytest.raises(ConfigError, match="more than 4096 files"):
        read_index(path)
    path = index(tmp_path, {"weight_map": {"x" * 1_025: "a.safetensors"}})
    with pytest.raises(ConfigError, match="1025 characters"):
        read_index(path)


@pytest.mark.parametrize("suffix", ["", "\\u0020"], ids=["plain", "escaped"])
def test_the_tensors_of_an_index_are_counted(suffix: str, tmp_path: Path) -> None:
    names = ",".join(f'"t{i}":"s.safetensors{suffix}"' for i in range(MAX_TENSORS + 60_000))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map":{' + names + "}}")
    expected = "has 310000 tensors, more than 250000" if not suffix else "has more than 300000 values"
    with pytest.raises(ConfigError, match=expected):
        read_index(path)


def test_a_colon_in_a_text_is_no_key() -> None:
    for text in ('{"a:b": ":", "c": [":", {"d": {}}]}', '{"a": {":": 1}, "b": {":": 1}}'):
        assert parse_json(text, where="x") == json.loads(text)
    with pytest.raises(ConfigError, match="the key 'c' is given twice"):
        parse_json('{"a:b": ":", "x": {"c": 1, "c": 1}}', where="x")


@pytest.mark.parametrize("name", ["x" * 300, "\ud800", "x" * 100_000])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path, name: str) -> None:
    index(tmp_path, {"weight_map": {"a": f"{name}.safetensors"}})
    with pytest.raises(ConfigError, match="names files that are not there"):
        weight_files(tmp_path)


def test_values_are_counted_before_they_are_made() -> None:
    with pytest.raises(ConfigError, match="f: has more than 3000000 values"):
        parse_json("[" + "0," * 3_000_000 + "0]", where="f")


def test_a_config_has_few_values(tmp_path: Path) -> None:
    """transformers copies them many times. The largest number of labels is far below."""
    path = tmp_path / "config.json"
    sizes = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 260}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 96, "architectures": ["LlamaForCausalLM"]}
    labels = {"id2label": {str(i): f"L{i}" for i in range(21_843)}}
    labels["label2id"] = {name: int(i) for i, name in labels["id2label"].items()}
    path.write_text(json.dumps({**sizes, **labels}))
    assert ModelInfo.load(path).num_hidden_layers == 2
    path.write_text(json.dumps({**sizes, "architectures": ["A"] * (MAX_CONFIG_VALUES + 1)}))
    with pytest.raises(ConfigError, match=rf"config\.json: has more than {MAX_CONFIG_VALUES} values"):
        ModelInfo.load(path)
