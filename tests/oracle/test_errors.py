"""Errors name their thing, survive pickling, and hints point at the nearest name."""

from __future__ import annotations

import pickle

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import (
    ConfigError,
    DodonaError,
    RuleFileError,
    UnsupportedConfiguration,
    did_you_mean,
)
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.hub import locate_or_download
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import load_rulebook


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tensor_paralel_size", "did you mean 'tensor_parallel_size'?"),
        ("tensor-parallel-size", "did you mean 'tensor_parallel_size'?"),
        ("TENSOR_PARALLEL_SIZE", "did you mean 'tensor_parallel_size'?"),
        ("zzz", ""),
    ],
)
def test_the_nearest_name(name: str, hint: str) -> None:
    assert did_you_mean(name, ["tensor_parallel_size", "block_size"]) == hint


def test_a_rule_file_error_reads_like_a_compiler_s() -> None:
    error = RuleFileError("book.yaml", 3, 7, "unknown fact 'x'", "did you mean 'y'?")
    assert str(error) == "book.yaml:3:7: unknown fact 'x' (did you mean 'y'?)"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.line, again.column) == (str(error), 3, 7)


def test_a_runner_s_own_refusal() -> None:
    error = UnsupportedConfiguration.lacking("v2", "lora", "pooling", why="no adapters")
    assert str(error) == "runner v2 does not support lora, pooling: no adapters"
    assert (error.features, error.verdict) == (("lora", "pooling"), None)


@pytest.mark.parametrize("override", [None, "v1", "v2"])
def test_a_refusal_by_verdict_lists_every_reason_and_crosses_processes(override: str | None) -> None:
    config = EngineConfig.from_flat("m", tensor_parallel_size=2, enable_lora=True)
    environment = Environment(has_triton=False, platform="cpu", override=override)  # type: ignore[arg-type]
    verdict = verdict_for(config, None, environment, load_rulebook("dodona"), trusted=True)
    error = UnsupportedConfiguration.from_verdict(verdict)
    assert verdict.refusals
    for reason in verdict.refusals:
        assert reason.rule in str(error)
        assert reason.because in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.features, again.verdict) == (str(error), error.features, verdict)


def test_they_share_one_base() -> None:
    assert issubclass(ConfigError, DodonaError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(RuleFileError, DodonaError)
    assert issubclass(UnsupportedConfiguration, DodonaError)


@pytest.mark.parametrize("password", ["s3cret", "s3@cret", "s3:cret@"])
def test_errors_show_no_password_of_a_url(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate_or_download(f"https://user:{password}@host/model")
    assert "s3" not in str(caught.value)
    assert "https://host/model" in str(pickle.loads(pickle.dumps(caught.value)))
