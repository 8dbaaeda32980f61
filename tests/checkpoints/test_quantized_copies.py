"""The committed quantized copies of the trained Qwen3: what they are, and that they answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from checkpoints.evaluate import held_out_prompts
from checkpoints.quantized_copies import COPIES, make, share_right, source_and_format
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner

ROOT = Path(__file__).parents[2] / "checkpoints"
OFTEN = ("qwen3-w4a16", "qwen3-w8a8-fp8", "qwen3-awq")
"""Copies whose answers are compared in every run of the tests; the others' in slow runs."""
NO_GPU = Environment(has_triton=False, platform="cpu")


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_what_the_script_makes(name, tmp_path):
    make(name, tmp_path)
    made, committed = (load_file(root / name / "model.safetensors") for root in (tmp_path, ROOT))
    assert made.keys() == committed.keys()
    for tensor, value in made.items():
        assert value.dtype == committed[tensor].dtype, tensor
        assert torch.equal(value.view(torch.uint8), committed[tensor].view(torch.uint8)), tensor
    for file in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name / file).read_text() == (ROOT / name / file).read_text()
    assert (ROOT / name / "model.safetensors").stat().st_size < 1.5e6


@pytest.mark.parametrize("name", COPIES)
def test_the_card_says_within_two_points(name):
    rows = (ROOT / name / "README.md").read_text().splitlines()
    shares = [
        [float(cell.strip(" %")) for cell in row.strip("| ").split("|")[1:]] for row in rows if "%" in row
    ]
    assert len(shares) == 4
    assert all(quantized > unquantized - 2 for quantized, unquantized in shares)


@pytest.fixture(scope="module")
def questions():
    """By source: prompts, and the unquantized model's share of right answers."""
    found = {}
    for source in {source_and_format(name)[0] for name in COPIES}:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / source)
        prompts = held_out_prompts(tokenizer, count=8, recall=True, seed=5)
        found[source] = prompts, share_right(ROOT / source, prompts)["all"]
    return found


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in COPIES],
)
def test_v1_answers_as_the_unquantized_model_does(name, questions, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    assert select_runner(str(ROOT / name), environment=NO_GPU).runner == "v1"
    prompts, unquantized = questions[source_and_format(name)[0]]
    assert unquantized > 0.95
    assert share_right(ROOT / name, prompts)["all"] > unquantized - 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("name", COPIES)
def test_v2_answers_as_the_unquantized_model_does(name, questions, monkeypatch):
    monkeypatch.delenv("DODONA_USE_V2_MODEL_RUNNER", raising=False)
    assert select_runner(str(ROOT / name)).runner == "v2"
    prompts, unquantized = questions[source_and_format(name)[0]]
    assert share_right(ROOT / name, prompts, device="cuda")["all"] > unquantized - 0.02


TWO_RANKS = [name for name in COPIES if name != "qwen3-fp8"]
"""Of blocks, two ranks would have half a block of keys each."""


def on_two_ranks(name):
    return EngineConfig.from_flat(str(ROOT / name), tensor_parallel_size=2)


def test_v2_takes_two_ranks_but_for_blocks_that_they_would_cut():
    machine = Environment(has_triton=True, platform="cuda", compute_capability=90, device_count=2)
    found = {name: select_runner(on_two_ranks(name), environment=machine).runner for name in COPIES}
    assert found == {name: "v2" if name in TWO_RANKS else "v1" for name in COPIES}


@pytest.mark.gpu
@pytest.mark.parametrize("name", TWO_RANKS)
def test_v2_answers_on_two_gpus(name, questions, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    monkeypatch.delenv("DODONA_USE_V2_MODEL_RUNNER", raising=False)
    assert select_runner(on_two_ranks(name)).runner == "v2"
    prompts, unquantized = questions[source_and_format(name)[0]]
    assert share_right(ROOT / name, prompts, device="cuda", ranks=2)["all"] > unquantized - 0.02
