"""An `LLM` over the fake runner, and what it must generate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.fake_runner import FakeRunner, fake_verdict, solo_run

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
PATIENCE = 120.0


def verdict_for(model_dir: Path, runner: dict[str, Any] | None = None, **flat: Any) -> SimpleNamespace:
    """A verdict for the fake runner; `runner`: its arguments, `flat`: fields of the configuration."""
    sizes = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return fake_verdict(str(model_dir), partial(FakeRunner, **(runner or {})), **{**sizes, **flat})


def fake_llm(model_dir: Path, runner: dict[str, Any] | None = None, **flat: Any) -> LLM:
    return LLM.from_verdict(verdict_for(model_dir, runner, **flat))


def solo(prompt: list[int], params: SamplingParams = GREEDY, **more: Any) -> list[int]:
    return solo_run(prompt, params, vocab_size=97, max_model_len=64, eos=frozenset({0}), **more)[0]


def no_engine_thread() -> bool:
    return not any(thread.name == "dodona-engine" for thread in threading.enumerate())


class Watched(Sequence[int]):
    """A prompt that calls somebody when it is looked at."""

    def __init__(self, tokens: list[int], look: Callable[[], None]) -> None:
        self.tokens = tokens
        self.look = look

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        self.look()
        return self.tokens[index]


def assert_soon(event: threading.Event) -> None:
    assert event.wait(PATIENCE)
