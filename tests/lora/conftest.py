from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    torch.set_num_threads(1)
    return TinyModels(tmp_path_factory.mktemp("lora-models"))
