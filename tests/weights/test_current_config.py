"""Updates of the configuration: what may change, what is refused by name, and that nobody keeps a copy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import SECTIONS
from dodona.oracle.errors import ConfigError
from dodona.runners.current_config import CHANGEABLE, CurrentConfig
from tests.support.fake_runner import fake_runner

ROOT = Path(__file__).parents[2]


def test_what_may_change_changes_for_every_reader() -> None:
    runner = fake_runner({"load_format": "dummy"})
    held = runner.current_config
    runner.update_config({"load_config": {"load_format": "auto"}})
    assert runner.config.load_config.load_format == "auto"
    assert held.value is runner.config
    assert dataclasses.replace(runner.config, load_config=held.value.load_config) == runner.config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"load_confg": {}}, "load_confg: no such section; did you mean 'load_config'"),
        ({"load_config": {"load_formt": "auto"}}, r"load_config\.load_formt: no such field; did you mean"),
        ({"load_config": {"load_format": "pickle"}}, r"load_config\.load_format: expected .*'pickle'"),
        ({"load_config": None}, "load_config: expected"),
        ([1], "expected {section"),
        ({"model_config": {"dtype": "float32"}}, r"model_config\.dtype: rules read it \(.*dtype"),
        ({"model_config": {"model": "other"}}, r"model_config\.model: rules read it"),
        (
            {"parallel_config": {"tensor_parallel_size": 2}},
            r"tensor_parallel_size: rules read it \(.*tensor-parallel-groups",
        ),
        ({"speculative_config": {"method": "ngram"}}, r"speculative_config\.method: rules read it"),
        ({"scheduler_config": {"max_num_seqs": 2}}, r"max_num_seqs: is fixed when the engine starts"),
    ],
)
def test_everything_else_is_refused_by_name_and_changes_nothing(overrides: Any, words: str) -> None:
    holder = CurrentConfig(EngineConfig.from_flat("model", load_format="dummy"))
    before = holder.value
    with pytest.raises(ConfigError, match=words):
        holder.update(overrides)
    if isinstance(overrides, dict):
        with pytest.raises(ConfigError):
            holder.update({"load_config": {"load_format": "auto"}, **overrides})
    assert holder.value is before


def test_each_field_may_change_or_is_refused() -> None:
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            if f"{section}.{field.name}" not in CHANGEABLE:
                with pytest.raises(ConfigError, match=re.escape(f"{section}.{field.name}: ")):
                    CurrentConfig(EngineConfig.from_flat("m")).update({section: {field.name: None}})


def test_nobody_keeps_what_may_change() -> None:
    """Fields that may change are read from the holder's value at each use, never stored under `self`."""
    names = "|".join(re.escape(path.split(".")[1]) for path in CHANGEABLE)
    stored = re.compile(rf"^\s*self\.\w+(: [^=]+)? = .*\b({names}|load_config)\b", re.MULTILINE)
    config = re.compile(r"^\s*self\.\w+(: [^=]+)? = (self\.)?(verdict\.)?config\b(?!\.)", re.MULTILINE)
    for path in (ROOT / "runners").rglob("*.py"):
        text = path.read_text()
        assert not stored.search(text), path
        if path.name != "current_config.py":
            assert not config.search(text), path
