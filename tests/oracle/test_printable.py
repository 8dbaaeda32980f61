"""Text that leaves: a model's files can't steer a terminal, and streams take whatever text there is."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dodona.cli import output
from dodona.cli.app import app
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import LONGEST, ConfigError, DodonaError, RuleFileError, UnsupportedConfiguration
from dodona.oracle.printable import HIDDEN, printable, short, without_userinfo
from dodona.runners.errors import InvalidRequestError, WorkerError

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from dodona.cli import main; main()"
CLOSED = (
    f"import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-c', {MAIN!r}, *sys.argv[1:]])"
)
HOSTILE = "\x1b[2J\x1b[31m\x9b1m\u202egnp\ud800\x07\r"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    config = json.loads((ROOT / "checkpoints/qwen3/config.json").read_text())
    config |= {"architectures": [f"{HOSTILE}ForCausalLM"], "hidden_act": HOSTILE, "dtype": HOSTILE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@given(st.text())
def test_nothing_hidden_is_left_and_the_rest_stays(text: str) -> None:
    shown = printable(text)
    assert not HIDDEN.search(shown)
    assert shown == text or HIDDEN.search(text)
    shown.encode("utf-8")


@pytest.mark.parametrize("arguments", [[], ["--explain"], ["--why-not", "v2"], ["--assume-gpu"], ["--json"]])
def test_a_models_files_cant_steer_a_terminal(hostile: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["select", str(hostile), "--no-trial-load", *arguments])
    assert done.exit_code in (0, 2, 3), done.output
    assert not HIDDEN.search(done.output.replace("\n", ""))
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if arguments == ["--json"] and done.exit_code == 0:
        json.loads(done.output)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_take_what_their_encoding_cant_hold(hostile: Path, encoding: str) -> None:
    done = run(["select", str(hostile), "--explain", "--no-trial-load"], encoding, subprocess.PIPE)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 2, 3)


def test_a_full_disk_is_a_line_and_exit_code_1() -> None:
    with open("/dev/full", "wb") as full:
        done = run(["rules", "list", "--json"], "utf-8", full)
    assert (done.returncode, done.stderr) == (1, "dodona: stdout can't be written: No space left on device\n")


def test_a_closed_stdout_is_a_line_and_exit_code_1() -> None:
    done = run(["rules", "list", "--json"], "utf-8", None, program=CLOSED)
    assert (done.returncode, done.stderr) == (1, "dodona: stdout can't be written: it is closed\n")


def test_what_libraries_log_is_printable(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    output.run(lambda: logging.getLogger("transformers").warning("a model of type %s", HOSTILE))
    assert caplog.messages == [f"a model of type {printable(HOSTILE)}"]


def test_what_libraries_warn_of_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    found: list[str] = []
    output.run(lambda: found.append(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1)))
    assert printable(HOSTILE) in found[0]


def test_a_full_stderr_changes_no_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        done = run(["select", "/no/such/model"], "utf-8", subprocess.PIPE, stderr=full)
        both = run(["rules", "list", "--json"], "utf-8", full, stderr=full)
    assert (done.returncode, both.returncode) == (2, 1)


def run(
    arguments: list[str],
    encoding: str,
    stdout: object,
    *,
    program: str = MAIN,
    stderr: object = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=stdout, stderr=stderr, env=environment, encoding=encoding, errors="strict", cwd=ROOT,
        timeout=60, check=False,
    )  # fmt: skip


def test_every_command_prints_through_one_place() -> None:
    """Nothing else in cli/ writes to a stream, and tables get their text by `words`."""
    for file in [*(ROOT / "cli").glob("*.py"), *(ROOT / "oracle/explain").glob("*.py")]:
        if file.name == "output.py":
            continue
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"typer\.echo|(?<![\w.])print\(|sys\.std(out|err)\.write|click\.echo", text), (
            file
        )
        made = re.findall(r"(?<![\w.])Text\((?!printable)", text)
        assert not made, file


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(HOSTILE),
        UnsupportedConfiguration.lacking("v1", HOSTILE, why=HOSTILE),
        RuleFileError(HOSTILE, 1, 2, HOSTILE, HOSTILE),
        WorkerError(1, HOSTILE, [HOSTILE]),
        InvalidRequestError(HOSTILE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_library_are_printable(error: DodonaError) -> None:
    for shown in (error, pickle.loads(pickle.dumps(error))):
        assert not HIDDEN.search(str(shown))
        assert printable(HOSTILE) in str(shown)


# --- secrets


def test_errors_do_not_show_what_may_be_secret() -> None:
    extra = {"password": "hunter2"}
    for value in ([extra], json.dumps([extra]), "hunter2"):
        with pytest.raises(ConfigError, match="kv_connector_extra_config") as caught:
            EngineConfig.from_mapping(
                {
                    "model_config": {"model": "m"},
                    "kv_transfer_config": {"kv_connector": "X", "kv_connector_extra_config": value},
                }
            )
        assert "hunter2" not in str(caught.value)


def test_what_was_given_is_shown_short_and_without_userinfo() -> None:
    assert without_userinfo("https://me:pass@host/x and ftp://u@h") == "https://host/x and ftp://h"
    assert short("https://me:pass@host") == "'https://host'"
    assert len(short("x" * 10_000)) == 80
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_mapping(
            {"model_config": {"model": "m", "dtype": "https://me:pass@host/" + "y" * 999}}
        )
    assert "pass@" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_error_is_cut_off() -> None:
    assert len(str(ConfigError("x" * 1_000_000))) == LONGEST
    assert "secret" not in str(ConfigError("x" * (LONGEST - 20) + "https://user:secret@host"))


def test_a_number_that_python_does_not_print() -> None:
    assert short(10**5_000) == "<int of 16610 bits>"
    assert short([10**5_000]) == "<list>"


@pytest.mark.parametrize("field", ["max_model_len", "block_size", "max_num_seqs", "kv_cache_memory_bytes"])
def test_a_huge_number_in_a_configuration(field: str) -> None:
    for value in (10**5_000, 1 << 63):
        with pytest.raises(ConfigError, match=f"{field}: expected less than or equal to {1 << 62}"):
            EngineConfig.from_flat("m", **{field: value})
