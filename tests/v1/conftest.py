"""Tiny models and transformers' own answers, made once per session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Directories of random tiny models."""
    torch.set_num_threads(1)
    return TinyModels(tmp_path_factory.mktemp("tiny-models"))


class Reference:
    """transformers itself on a model directory."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._answers: dict[tuple[Any, ...], list[int]] = {}

    def generate(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Greedy tokens by `generate`, which does not stop early."""
        key = (tuple(prompt), max_tokens)
        if key not in self._answers:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                output = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=max_tokens,
                    max_new_tokens=max_tokens,
                )  # fmt: skip
            self._answers[key] = output[0, len(prompt) :].tolist()
        return self._answers[key]

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[n, vocab] fp32, one row for each token given."""
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0].float()


@pytest.fixture(scope="session")
def reference() -> Callable[[Path], Reference]:
    """Reference by model directory."""
    made: dict[Path, Reference] = {}

    def get(path: Path) -> Reference:
        if path not in made:
            made[path] = Reference(path)
        return made[path]

    return get
