"""The committed checkpoints, by transformers itself: what they are, and that they answer unseen questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import train
from checkpoints.evaluate import generate_answers, held_out_prompts
from checkpoints.recipes import RECIPES
from checkpoints.task import chat_messages, sum_question

CHECKPOINTS = Path(train.__file__).parent
NAMES = tuple(name for name in RECIPES if (CHECKPOINTS / name / "config.json").exists())


def load(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    folder = CHECKPOINTS / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **changes).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_least_95_percent_of_unseen_prompts_are_answered_right(name: str) -> None:
    model, tokenizer = load(name)
    prompts = held_out_prompts(tokenizer, count=40, recall=RECIPES[name].recall, seed=11)
    assert set(prompts) == {"plain", "chat", "conversation"}
    for form, of_form in prompts.items():
        answers = generate_answers(model, tokenizer, of_form)
        wrong = [(p.text, a, p.answer) for p, a in zip(of_form, answers, strict=True) if a != p.answer]
        assert len(wrong) <= 2, (form, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_about_a_megabyte_of_bf16(name: str) -> None:
    files = sorted((CHECKPOINTS / name).glob("*.safetensors"))
    size = 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                assert tensors.get_tensor(key).dtype == torch.bfloat16, key
        size += file.stat().st_size
    assert 0.9e6 < size <= 1.5e6
    assert (len(files) > 1) == (CHECKPOINTS / name / "model.safetensors.index.json").exists()


def test_the_three_differ_in_what_tests_need() -> None:
    configs = {name: json.loads((CHECKPOINTS / name / "config.json").read_text()) for name in NAMES}
    assert configs["qwen3"]["tie_word_embeddings"] is True
    assert configs["llama"]["tie_word_embeddings"] is configs["mistral"]["tie_word_embeddings"] is False
    assert configs["llama"]["rope_parameters"]["rope_type"] == "llama3"
    assert len(list((CHECKPOINTS / "llama").glob("*.safetensors"))) > 1
    assert configs["mistral"]["sliding_window"] == 28
    for config in configs.values():
        assert config["head_dim"] == 32
        assert config["num_key_value_heads"] < config["num_attention_heads"]


@torch.inference_mode()
def test_the_sliding_window_of_mistral_matters() -> None:
    windowed, tokenizer = load("mistral")
    unlimited, _ = load("mistral", sliding_window=None)
    turns = [sum_question(a, a + 41) for a in range(100, 104)]
    text = tokenizer.apply_chat_template(chat_messages(turns), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    window = windowed.config.sliding_window
    assert ids.shape[1] > 2 * window
    with_window, without = windowed(ids).logits[0], unlimited(ids).logits[0]
    torch.testing.assert_close(with_window[:window], without[:window], rtol=1e-4, atol=1e-4)
    assert (with_window[window:] - without[window:]).abs().max() > 0.1


def test_either_end_token_ends_an_answer() -> None:
    model, tokenizer = load("qwen3")
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|endoftext|>"]
    for text, end in (
        ("What is 37 + 58?", "<|endoftext|>"),
        ("<|user|>What is 37 + 58?<|end|><|assistant|>", "<|end|>"),
    ):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
        assert tokenizer.decode(out[0, ids.shape[1] :]).strip() == f"95{end}"


@pytest.mark.slow
def test_the_training_script_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["llama", "--device=cpu", "--measure=2", f"--output={tmp_path}"]
    train.main([*arguments, "--steps=6", "--batch=8", "--pool=64"])
    out = capsys.readouterr().out
    losses = [float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if "loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    assert "Greedy exact match" in (tmp_path / "llama" / "README.md").read_text()
    train.main([*arguments, "--measure-only"])
    assert "llama in bfloat16: all 0.00%" in capsys.readouterr().out


def test_the_pool_labels_answers_and_nothing_else() -> None:
    tokenizer = train.train_tokenizer()
    pool = train.build_pool(tokenizer, size=200, recall=True, seed=3)
    for ids, labels, length in zip(
        pool.ids.tolist(), pool.labels.tolist(), pool.lengths.tolist(), strict=True
    ):
        text = tokenizer.decode(ids[:length], skip_special_tokens=False)
        # Cutting the text into pieces must not have changed its tokens.
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids[:length]
        said = tokenizer.decode([t for t in labels if t != train.IGNORED], skip_special_tokens=False)
        if text.startswith("<|user|>"):
            answers = [turn.split("<|end|>")[0] for turn in text.split("<|assistant|>")[1:]]
            assert said == "".join(f"{answer}<|end|>" for answer in answers)
        else:
            assert said.endswith("<|endoftext|>")
            assert text.endswith(said)
            assert "?" not in said


def test_a_step_count_of_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        train.main(["qwen3", "--steps", "0"])
    assert error.value.code == 2
    assert "--steps" in capsys.readouterr().err
