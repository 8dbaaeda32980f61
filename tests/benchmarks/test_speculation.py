"""The benchmarks of drafts run where there is no GPU, and accept what they are told to."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import results, speculation, speculation_vllm


def test_acceptance_is_forced(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model tiny --batch-sizes 1 --prompt-tokens 5 --output-tokens 5 --repetitions 1"
    report = speculation.main([*options.split(), "--num-speculative-tokens", "2", "--forced-acceptance", "1"])
    plain, forced = report["records"]
    assert forced["mean_acceptance_length"] == 2.0
    assert forced["note"] == "acceptance was forced, and outputs mean nothing"
    assert plain["batches"][1]["steps"] == 5
    assert forced["batches"][1]["steps"] == 3  # the prompt's, then two of two tokens
    measures = {"output_tokens_per_second", "seconds_per_step", "median_step_seconds"}
    assert set(forced["against_plain"][1]) == measures
    assert 0 < plain["batches"][1]["median_step_seconds"] < plain["batches"][1]["seconds"]
    assert "/" not in forced["speculative_config"]["model"]
    assert "forced" in capsys.readouterr().out


def test_so_many_drafts_are_forced() -> None:
    """Two rows of three drafts and padding: drafts where they are to be accepted, else another token."""
    from benchmarks.forced_drafts import force_tokens

    history = torch.arange(40, dtype=torch.int32).view(2, 20)
    offsets = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0], dtype=torch.int32)
    rows = torch.tensor([0] * 4 + [1] * 4 + [-1], dtype=torch.int32)
    firsts = torch.tensor([1] * 4 + [18] * 4 + [0], dtype=torch.int32)
    tokens = torch.full((9,), -5, dtype=torch.int32)
    force_tokens(
        tokens, idx_mapping=rows, positions=firsts + offsets, offsets=offsets, history=history, vocab_size=38,
        accepted=1.5,
    )  # fmt: skip
    # One more of the first row, at 37 of 100; none of the second, at 666, whose last are beyond the end.
    assert tokens[:-1].tolist() == [1, 2, 4, 5, 38, 2, 2, 2]


class FakeLLM:
    """Answers as vLLM's LLM does: each step yields the token of the model and the accepted drafts. Like
    vLLM's, it adds objects to the `speculative_config` that it is given."""

    def __init__(self, *, speculative_config: dict[str, Any] | None, **arguments: Any) -> None:
        self.length = 1
        if speculative_config is not None:
            self.length = int(speculative_config["synthetic_acceptance_length"])
            assert Path(speculative_config["model"], "config.json").is_file()
            speculative_config["target_model_config"] = object()
        self.drafts = 0

    def generate(self, prompts: list[Any], params: SimpleNamespace, use_tqdm: bool) -> list[Any]:
        self.drafts += len(prompts) * params.max_tokens // self.length
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * params.max_tokens)]) for _ in prompts
        ]

    def get_metrics(self) -> list[SimpleNamespace]:
        counts = {"num_drafts": self.drafts, "num_accepted_tokens": self.drafts * (self.length - 1)}
        return [SimpleNamespace(name=f"vllm:spec_decode_{name}", value=n) for name, n in counts.items()]


def test_the_records_of_vllm_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams, vllm.__version__ = FakeLLM, SimpleNamespace, "0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for variable in speculation_vllm.ENVIRONMENT:
        monkeypatch.setenv(variable, "")
    options = "--model tiny --batch-sizes 1 3 --prompt-tokens 5 --output-tokens 12 --repetitions 1"
    file = tmp_path / "vllm.json"
    speculation_vllm.main([*options.split(), "--forced-acceptance", "2", "--output", str(file)])
    written = results.read(file)
    plain, forced = written["records"]
    assert written["environment"]["vllm"] == "0"
    assert written["arguments"]["output"] == "vllm.json"
    assert plain["speculative_config"] is None
    assert forced["speculative_config"].keys() == {
        "method", "model", "num_speculative_tokens", "rejection_sample_method", "synthetic_acceptance_length"
    }  # fmt: skip
    assert "/" not in forced["speculative_config"]["model"]
    assert forced["mean_acceptance_length"] == 3.0
    assert [plain["batches"][batch]["steps"] for batch in "13"] == [12, 12]
    assert [forced["batches"][batch]["steps"] for batch in "13"] == [4, 4]
