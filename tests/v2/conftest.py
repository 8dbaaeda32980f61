from __future__ import annotations

import pytest

from tests.support.tiny_models import TinyModels
from tests.v2.drive import DEVICE


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("v2-models"))


@pytest.fixture
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, engines start without a warm-up: it takes 10 s in Triton's interpreter, and `test_llm.py` and
    `test_step.py` have it."""
    if DEVICE == "cpu":
        monkeypatch.setattr("dodona.runners.startup.warm_up", lambda runner: None)
