"""`dodona select` with --explain, --why-not and --compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.systems.books import bundled_rulebook

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
TRANSFER = '{"kv_connector": "C", "kv_role": "kv_both"}'


@pytest.fixture
def qwen3(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    return str(tmp_path)


def run(*arguments: str, **env: str) -> Any:
    clean = {
        "DODONA_USE_V2_MODEL_RUNNER": None,
        "VLLM_USE_V2_MODEL_RUNNER": None,
        "DODONA_DECISION_LOG": None,
    }
    result = CliRunner().invoke(app, ["select", "--no-trial-load", *arguments], env={**clean, **env})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_explain_shows_every_rule_and_its_facts(qwen3: str) -> None:
    result = run(qwen3, "--assume-gpu", "--compilation-config", "1", "--explain")
    assert result.exit_code == 0
    for rule in bundled_rulebook("dodona").rules:
        assert rule.id in result.stdout
    row = next(line for line in result.stdout.splitlines() if "rules out v2 *" in line)
    assert "stock-torch-compile" in row
    assert "compilation_config.mode" in row


def test_explain_as_json(qwen3: str) -> None:
    data = json.loads(run(qwen3, "--assume-gpu", "--block-size", "48", "--explain", "--json").stdout)
    assert set(data) == {"verdict", "trace"}
    assert Verdict.model_validate(data["verdict"]).runner == "v1"
    fired = [step for step in data["trace"] if step["fired"]]
    assert [(step["rule"], step["decisive"]) for step in fired] == [("block-size", True)]
    assert fired[0]["facts"] == [
        {"fact": "cache_config.block_size", "assumed": False, "known": True, "value": 48}
    ]


def test_explain_of_a_vllm_release_shows_what_was_assumed(qwen3: str) -> None:
    result = run(qwen3, "--assume-gpu", "--rulebook", "vllm/0.33.0", "-pp", "2", "--explain")
    shown = "".join(result.stdout.replace("│", " ").split())
    assert "scheduler_config.async_scheduling=unset(assumed)" in shown


def test_why_not_names_every_set_of_changes(qwen3: str) -> None:
    arguments = [qwen3, "--assume-gpu", "-pp", "2", "--kv-transfer-config", TRANSFER, "--why-not", "v2"]
    result = run(*arguments)
    assert result.exit_code == 3
    assert "- parallel_config.pipeline_parallel_size 2 → 1" in result.stdout
    assert "one of: kv_transfer_config → unset, or kv_transfer_config.kv_connector C" in result.stdout
    assert "DODONA_USE_V2_MODEL_RUNNER=1: refused for pipeline parallelism" in result.stdout
    data = json.loads(run(*arguments, "--json").stdout)["counterfactuals"]
    assert len(data["sets"]) == 3
    assert data["sets"][0][0] == {
        "path": "parallel_config.pipeline_parallel_size",
        "before": 2,
        "after": 1,
    }
    assert data["blocked_by"] == []


def test_why_not_says_what_blocks(qwen3: str) -> None:
    result = run(qwen3, "--device", "cpu", "--assume-gpu", "--why-not", "v2", DODONA_USE_V2_MODEL_RUNNER="0")
    assert "No change of the configuration leads to v2" in result.stdout
    assert "[environment-v1; the environment variable]" in result.stdout
    assert "DODONA_USE_V2_MODEL_RUNNER unset: v1 starts" in result.stdout


def test_why_not_where_nothing_has_to_change(qwen3: str) -> None:
    result = run(qwen3, "--assume-gpu", "--why-not", "V2")
    assert result.exit_code == 0
    assert "nothing has to change" in result.stdout


def test_why_not_of_a_special_case(qwen3: str) -> None:
    options = ("-pp", "2", "--speculative-config", '{"method": "eagle3", "model": "m"}')
    result = run(qwen3, "--assume-gpu", *options, "--why-not", "v2")
    assert "Were pipeline-parallelism lifted, eagle3-pipeline-parallelism would remain" in result.stdout
    assert "parallel_config.pipeline_parallel_size 2 → 1" in result.stdout


def test_why_not_of_a_vllm_release(qwen3: str) -> None:
    arguments = ["vllm", "serve", qwen3, "--enable-dbo", "--rulebook", "vllm/0.25.1", "--assume-gpu"]
    result = run(*arguments, "--why-not", "v2")
    assert "parallel_config.enable_dbo true → false" in result.stdout
    assert "VLLM_USE_V2_MODEL_RUNNER=1: refused for dual batch overlap" in result.stdout


def test_an_unknown_runner_is_named(qwen3: str) -> None:
    result = run(qwen3, "--why-not", "v3")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--why-not v3: expected one of v2, v1" in result.stderr


def test_compare_shows_releases_side_by_side(qwen3: str) -> None:
    books = "vllm/0.22.0,vllm/0.25.1,vllm/0.33.0"
    asked = (qwen3, "--assume-gpu", "-pcp", "2", "--enable-dbo", "--all2all-backend", "deepep_low_latency")
    result = run(*asked, "--compare", books)
    assert result.exit_code == 0
    for name in books.split(","):
        assert name in result.stdout
    data = json.loads(run(*asked, "--compare", books, "--json").stdout)
    assert {name: (verdict["runner"], bool(verdict["refusals"])) for name, verdict in data.items()} == {
        "vllm/0.22.0": ("v1", False),
        "vllm/0.25.1": ("v1", False),
        "vllm/0.33.0": ("v1", True),
    }
    alone = run(*asked, "--rulebook", "vllm/0.33.0", "--json")
    assert json.loads(alone.stdout) == data["vllm/0.33.0"]


def test_compare_takes_own_books_from_files(qwen3: str, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "rules" / "dodona.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(source.read_text().replace("{in: [16, 32, 64, 128, 256]}", "{in: [16, 48]}"))
    arguments = [qwen3, "--assume-gpu", "--block-size", "48", "--compare", f"dodona, {mine}", "--json"]
    data = json.loads(run(*arguments).stdout)
    assert data["dodona"]["runner"] == "v1"
    assert "block-size" not in [reason["rule"] for reason in data[str(mine)]["reasons"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "dodona"], "name at least two"),
        (["--compare", "dodona,vllm/0.25.1"], "compare books of one system"),
        (["--compare", "vllm/0.22.0,vllm/9.9.9"], "no rule book is named 'vllm/9.9.9'"),
        (["--compare", "vllm/0.22.0,vllm/0.25.1", "--explain"], "ask of one book"),
        (["--compare", "vllm/0.22.0,vllm/0.25.1", "--rulebook", "vllm/0.25.1"], "ask of one book"),
    ],
)
def test_what_cannot_be_compared_is_named(qwen3: str, arguments: list[str], message: str) -> None:
    result = run(qwen3, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_book_from_a_file_answers_too(qwen3: str, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "rules" / "dodona.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(source.read_text().replace("rulebook: dodona", "rulebook: mine"))
    result = run(qwen3, "--assume-gpu", "--block-size", "48", "--rulebook", str(mine), "--why-not", "v2")
    assert "cache_config.block_size 48 → 16" in result.stdout
