"""`rules replay`: what it compares, what it says, and what it makes of cases that can't be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.replay import replay
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.vllm.facts import derive_facts
from dodona.oracle.systems.vllm.releases import nearest_release

BOOK = bundled_rulebook("vllm/0.33.0")


def _case(**changed: Any) -> dict[str, Any]:
    config = {"model_config": {"architectures": ["LlamaForCausalLM"]}, "parallel_config": {}}
    expect = {
        "use_v2": True,
        "startup": "ok",
        "unsupported_v1": [],
        "unsupported_v2": [],
        "error": None,
        "warnings": [],
    }
    case = {
        "config": config,
        "env": None,
        "has_triton": True,
        "platform": "cuda",
        "logitsproc_plugins": False,
        "expect": expect,
    }
    for name, value in changed.items():
        if name in expect:
            expect[name] = value
        elif name.endswith("_config"):
            config[name] = value
        else:
            case[name] = value
    return case


def _file(folder: Path, *cases: object) -> Path:
    path = folder / "cases.jsonl"
    path.write_text("".join(f"{json.dumps(case)}\n" for case in cases))
    return path


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({}, ()),
        ({"use_v2": False}, ("choice",)),
        ({"use_v2": None}, ("choice",)),
        ({"startup": {"message": "no"}}, ("startup",)),
        ({"unsupported_v1": ["Step5"]}, ("unsupported by V1",)),
        ({"unsupported_v2": ["x"]}, ("unsupported by V2",)),
        ({"unsupported_v1": None, "unsupported_v2": None}, ()),
        (
            {"startup": {}, "unsupported_v1": ["x"], "unsupported_v2": ["x"]},
            ("startup", "unsupported by V1", "unsupported by V2"),
        ),
        ({"env": "nonsense", "use_v2": None, "unsupported_v1": None, "unsupported_v2": None}, ()),
        ({"env": "nonsense"}, ("choice",)),
        ({"env": "7"}, ()),
        ({"env": "0", "use_v2": False}, ()),
        (
            {
                "parallel_config": {"prefill_context_parallel_size": 2},
                "unsupported_v1": ["prefill context parallel"],
            },
            (),
        ),
    ],
)
def test_what_is_compared(tmp_path: Path, changed: dict[str, Any], about: tuple[str, ...]) -> None:
    result = replay(BOOK, [_file(tmp_path, _case(**changed))])
    assert tuple(d.about for d in result.disagreements) == ((about,) if about else ())
    assert (result.total, result.agreed) == (1, 0 if about else 1)


def test_lists_compare_as_sets(tmp_path: Path) -> None:
    two = {
        "lora_config": {},
        "speculative_config": {"method": "suffix"},
        "parallel_config": {"enable_dbo": True},
    }
    names = ["dual batch overlap", "speculative method 'suffix'"]
    for order in (names, names[::-1], [*names, names[0]]):
        case = _case(**two, use_v2=False, unsupported_v2=order)
        assert replay(BOOK, [_file(tmp_path, case)]).agreed == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (_case(platform="abacus"), "platform: expected one of cuda"),
        (_case(env=1), "env: expected a text"),
        (_case(has_triton=None), "has_triton: expected true or false"),
        (_case(expect=None), "expect: expected an object"),
        (_case(config=[]), "config: expected an object"),
        (_case(use_v2="yes"), "use_v2: expected true or false"),
        (_case(unsupported_v1="x"), "expect.unsupported_v1: expected a list"),
        (
            _case(parallel_config={"enable_dbo": 1}),
            "parallel_config.enable_dbo: expected true or false, got 1",
        ),
        (_case(parallel_config={"ubatch_size": "2"}), "parallel_config.ubatch_size: expected a whole number"),
        (_case(parallel_config=3), "parallel_config: expected a section, got 3"),
        (_case(model_config={"architectures": "x"}), "architectures: expected a list of texts"),
        (3, "expected a JSON object"),
    ],
)
def test_a_case_that_cannot_be_read_is_named(tmp_path: Path, case: object, message: str) -> None:
    path = _file(tmp_path, _case(), case)
    with pytest.raises(ConfigError) as caught:
        replay(BOOK, [path])
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{}\n" * 1000)[:-20])
    (tmp_path / "text.jsonl").write_text("{'not': json}\n")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9\n")
    (tmp_path / "plain.jsonl.gz").write_text("{}\n")
    for name in ("torn.jsonl.gz", "text.jsonl", "latin.jsonl", "plain.jsonl.gz", "absent.jsonl"):
        with pytest.raises(ConfigError, match=name):
            replay(BOOK, [tmp_path / name])


def test_the_command_prints_and_exits_by_agreement(tmp_path: Path) -> None:
    path = str(_file(tmp_path, _case(), _case(use_v2=False), _case(unsupported_v2=["x"])))
    found = CliRunner().invoke(app, ["rules", "replay", "vllm/0.33.0", path, "--show", "1"])
    assert found.exit_code == 1
    assert f"{path}:2: they differ about choice" in found.stdout
    assert "... and 1 more" in found.stdout
    assert found.stdout.endswith("1 of 3 agree\n")
    one = str(_file(tmp_path, _case()))
    found = CliRunner().invoke(app, ["rules", "replay", "vllm/0.33.0", one, one])
    assert (found.exit_code, found.stdout) == (0, "2 of 2 agree\n")


def test_a_book_of_another_system_replays_nothing(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["rules", "replay", "dodona", str(_file(tmp_path, _case()))])
    assert found.exit_code == 2
    assert "describes dodona" in found.stderr


@pytest.mark.parametrize(
    ("release", "nearest"),
    [
        ("0.34.0", "0.33.0"), ("0.25.2", "0.25.1"), ("v0.22", "0.22.0"), ("0.1.0", "0.16.0"),
        ("0.17.3", "0.17.1"), ("1.0", "0.33.0"), ("0.25.0rc1", "0.25.0"),
    ],
)  # fmt: skip
def test_an_unknown_release_gets_the_nearest_ones_name(release: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"'vllm/{nearest}'"):
        bundled_rulebook(f"vllm/{release}x")
    assert nearest_release(release, ["0.16.0", "0.17.1", "0.22.0", "0.25.0", "0.25.1", "0.33.0"]) == nearest


def test_facts_below_what_is_not_configured_are_null_and_absent_fields_are_defaults() -> None:
    facts = derive_facts({"model_config": {}, "speculative_config": None}, assumed_gpu())
    assert facts["model_config"] is True
    assert facts["model_config.runner_type"] == "generate"
    assert facts["model_config.is_moe"] is False
    assert facts["speculative_config"] is None
    assert facts["speculative_config.method"] is None
    assert facts["parallel_config.use_ubatching"] is None
    assert facts["attention_config.hisparse_config"] is None


def test_an_empty_section_is_configured() -> None:
    config = {"ec_transfer_config": {}, "attention_config": {"hisparse_config": {}}, "speculative_config": {}}
    facts = derive_facts(config, assumed_gpu())
    assert facts["ec_transfer_config"] is True
    assert facts["attention_config.hisparse_config"] is True
    assert facts["speculative_config.num_speculative_tokens_per_batch_size"] is None


def test_a_books_assumptions_are_the_defaults() -> None:
    facts = derive_facts({"cache_config": {}}, assumed_gpu(), {"cache_config.mamba_cache_mode": "align"})
    assert facts["cache_config.mamba_cache_mode"] == "align"


@pytest.mark.parametrize(
    ("dbo", "size", "expected"),
    [
        (True, 0, True), (False, 2, True), (False, 1, False), (False, 0, False), (True, UNKNOWN, True),
        (UNKNOWN, 0, UNKNOWN), (UNKNOWN, 2, True), (False, UNKNOWN, UNKNOWN),
    ],
)  # fmt: skip
def test_micro_batches(dbo: object, size: object, expected: object) -> None:
    facts = derive_facts({"parallel_config": {"enable_dbo": dbo, "ubatch_size": size}}, assumed_gpu())
    assert facts["parallel_config.use_ubatching"] is expected


@pytest.mark.parametrize(
    ("layer_types", "mixed"),
    [
        (None, None), ([], False), (["sliding_attention"], False), (["full_attention"], False),
        (["sliding_attention", "full_attention"], True),
    ],
)  # fmt: skip
def test_mixed_layers_of_a_draft(layer_types: list[str] | None, mixed: bool | None) -> None:
    draft = {"architectures": ["A"], "hf_config": {"layer_types": layer_types}}
    facts = derive_facts({"speculative_config": {"draft_model_config": draft}}, assumed_gpu())
    assert facts["speculative_config.draft_model_config.has_mixed_sliding_layers"] is mixed
    assert facts["speculative_config.draft_model_config.architectures"] == ("A",)
