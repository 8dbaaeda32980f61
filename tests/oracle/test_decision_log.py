"""The decision log: what a line says and hides, rotation, several processes, and failures."""

from __future__ import annotations

import datetime
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from typer.testing import CliRunner

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.decision_log import LOG_VARIABLE, config_hash, log_decision, select_and_log
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.testing import engine_config_mappings

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
DODONA = bundled_rulebook("dodona")
CPU = Environment(has_triton=False, platform="cpu")
SECRET = "hf_kFzPqXsecret"


@pytest.fixture
def qwen3(tmp_path: Path) -> str:
    directory = tmp_path / "my-private-model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(QWEN3))
    return str(directory)


def verdict_of(**arguments: Any) -> Verdict:
    model = arguments.pop("model", "model")
    config = EngineConfig.from_flat(model, **arguments)
    return verdict_for(config, ModelInfo.from_mapping(QWEN3), assumed_gpu(), DODONA)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_says_what_was_decided(qwen3: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    config = EngineConfig.from_flat(qwen3, compilation_config=1)
    verdict = select_and_log(config, environment=assumed_gpu(), log=log)
    (line,) = lines(log)
    assert set(line) == {
        "time", "config_hash", "model_hash", "rulebook", "rulebook_hash", "runner", "forced", "decided_by",
        "fired", "refusals",
    }  # fmt: skip
    assert line["runner"] == "v1"
    assert line["fired"] == ["stock-torch-compile"]
    assert (line["rulebook"], line["rulebook_hash"]) == ("dodona", DODONA.content_hash)
    assert line["config_hash"] == config_hash(verdict)
    assert line["time"].endswith("Z")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(line["time"])
    assert abs(age) < datetime.timedelta(minutes=5)


def test_a_refusal_is_logged_and_still_raised(qwen3: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    config = EngineConfig.from_flat(qwen3, decode_context_parallel_size=2)
    with pytest.raises(UnsupportedConfiguration):
        select_and_log(config, environment=assumed_gpu(), log=log)
    assert lines(log)[0]["refusals"] == ["decode-context-parallelism"]


def test_nothing_of_the_configuration_is_readable(qwen3: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    transfer = {
        "kv_connector": SECRET,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"token": SECRET},
        "kv_connector_module_path": f"/srv/{SECRET}",
    }
    speculative = {"method": SECRET, "model": f"/srv/{SECRET}"}
    config = EngineConfig.from_flat(
        qwen3,
        kv_transfer_config=transfer,
        speculative_config=speculative,
        quantization=SECRET,
        tokenizer=f"/srv/{SECRET}",
    )
    with pytest.raises(UnsupportedConfiguration):
        select_and_log(config, environment=CPU, log=log)
    text = log.read_text()
    for hidden in (SECRET.lower(), "my-private-model", str(tmp_path), "/srv"):
        assert hidden not in text.lower()


def test_without_the_variable_nothing_is_written(
    qwen3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    before = sorted(tmp_path.rglob("*"))
    verdict = select_and_log(qwen3, environment=CPU)
    assert log_decision(verdict) is False
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setenv(LOG_VARIABLE, "")
    assert log_decision(verdict) is False


@settings(max_examples=60)
@given(engine_config_mappings(), engine_config_mappings())
def test_hashes_are_equal_where_configurations_are(a: dict[str, Any], b: dict[str, Any]) -> None:
    model, machine = ModelInfo.from_mapping(QWEN3), assumed_gpu()
    one, same, other = (
        verdict_for(EngineConfig.from_mapping(mapping), model, machine, DODONA)
        for mapping in (a, json.loads(json.dumps(EngineConfig.from_mapping(a).to_mapping())), b)
    )
    assert config_hash(one) == config_hash(same)
    assert (config_hash(one) == config_hash(other)) is (one.config == other.config)


def test_an_empty_section_counts() -> None:
    assert config_hash(verdict_of(kv_transfer_config={})) != config_hash(verdict_of())
    assert config_hash(verdict_of(pipeline_parallel_size=1)) == config_hash(verdict_of())


def test_a_rotated_file_is_left_at_once(tmp_path: Path) -> None:
    log, old = tmp_path / "log.jsonl", tmp_path / "log.jsonl.1"
    verdict = verdict_of()
    assert log_decision(verdict, log)
    log.rename(old)
    assert log_decision(verdict, log)
    assert log_decision(verdict, log)
    assert (len(lines(old)), len(lines(log))) == (1, 2)
    # copied and cut to nothing, as logrotate's copytruncate does
    os.truncate(log, 0)
    assert log_decision(verdict, log)
    assert len(lines(log)) == 1
    assert b"\x00" not in log.read_bytes()


_WRITER = """
import sys
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decision_log import log_decision
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.select import verdict_for
verdict = verdict_for(EngineConfig.from_flat("m"), None, assumed_gpu(), bundled_rulebook("dodona"))
for _ in range(300):
    assert log_decision(verdict, sys.argv[1])
"""


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(log)], env=env) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert len(lines(log)) == 900


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "place",
    [
        lambda tmp: tmp,
        lambda tmp: tmp / "missing" / "log.jsonl",
        lambda tmp: fifo(tmp / "pipe"),
        lambda tmp: tmp / "zero\x00byte",
    ],
    ids=["directory", "no directory", "pipe without a reader", "no file name"],
)
def test_a_log_that_cannot_be_written_loses_no_decision(
    place: Any, qwen3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        verdict = select_and_log(qwen3, environment=assumed_gpu(), log=place(tmp_path))
    assert verdict.runner == "v2"
    assert "can't be written" in caplog.text


def test_a_full_disk_loses_no_decision(caplog: pytest.LogCaptureFixture) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    assert log_decision(verdict_of(), "/dev/full") is False
    assert "No space left" in caplog.text


def test_the_command_line_logs(qwen3: str, tmp_path: Path) -> None:
    from dodona.cli.app import app

    log = tmp_path / "log.jsonl"
    env = {LOG_VARIABLE: str(log), "DODONA_USE_V2_MODEL_RUNNER": None, "VLLM_USE_V2_MODEL_RUNNER": None}
    CliRunner().invoke(app, ["select", qwen3, "--assume-gpu"], env=env)
    CliRunner().invoke(app, ["select", qwen3, "--assume-gpu", "-dcp", "2"], env=env)
    vllm = ["select", qwen3, "--assume-gpu", "--rulebook", "vllm/0.25.1", "--enable-dbo"]
    vllm += ["--all2all-backend", "deepep_low_latency"]
    CliRunner().invoke(app, vllm, env=env)
    found = [(line["rulebook"], line["runner"], line["fired"]) for line in lines(log)]
    assert found == [
        ("dodona", "v2", []),
        ("dodona", "v1", ["decode-context-parallelism"]),
        ("vllm/0.25.1", "v1", ["dual-batch-overlap"]),
    ]


def test_the_engine_logs(qwen3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dodona.runners.llm import LLM

    log = tmp_path / "log.jsonl"
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    with pytest.raises(UnsupportedConfiguration):
        LLM(qwen3, decode_context_parallel_size=2)
    assert "decode-context-parallelism" in lines(log)[0]["refusals"]
