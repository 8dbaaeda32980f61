"""Adapters that PEFT itself saved, against PEFT's own output. Skipped without the package `peft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona import LLM, LoRARequest, PoolingParams
from tests.lora.test_pooling import ENGINE, LABELS, expected
from tests.lora.test_pooling import plain as plain_pooling
from tests.lora.test_v1 import PROMPTS, check, make_llm
from tests.support import pooling_table
from tests.support.tiny_models import TinyModels

peft = pytest.importorskip("peft", reason="pip install peft, to compare with PEFT itself")


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
    ("llama", {"r": 8, "target_modules": "all-linear", "lora_alpha": 20, "use_rslora": True}),
    (
        "qwen3",
        {
            "r": 2, "target_modules": ["k_proj", "o_proj", "down_proj"], "layers_to_transform": [1],
            "rank_pattern": {"down_proj": 5}, "alpha_pattern": {r"1\.self_attn\.k_proj": 7},
        },
    ),
    ("qwen3", {"r": 3, "target_modules": r".*\.layers\.0\..*(up|gate)_proj"}),
    (
        "llama",
        {"r": 4, "target_modules": ["q_proj", "k_proj", "up_proj"], "exclude_modules": ["k_proj"],
         "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), CONFIGS)
def test_the_same_tokens_as_peft(
    family: str, settings: dict[str, Any], tiny_models: TinyModels, tmp_path: Path
) -> None:
    path = tiny_models.path(family)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = peft.get_peft_model(plain(path), peft.LoraConfig(**settings, init_lora_weights=False))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.3)
    model.eval().save_pretrained(tmp_path / "adapter")
    unmerged = peft.PeftModel.from_pretrained(plain(path), tmp_path / "adapter").eval()
    merged = peft.PeftModel.from_pretrained(plain(path), tmp_path / "adapter").merge_and_unload().eval()
    with make_llm(path) as llm:
        lora = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        check(llm, [lora, lora, None], [unmerged, merged, plain(path)], PROMPTS)


def test_adapters_that_peft_can_save_and_are_not_served(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tiny_models.path("llama")
    common = {"r": 4, "target_modules": ["q_proj"]}
    refused = {
        "use_dora": {"use_dora": True},
        "modules_to_save": {"modules_to_save": ["norm"]},
        "lora_bias": {"lora_bias": True, "init_lora_weights": False},
        "bias": {"bias": "lora_only"},
        "init_lora_weights": {"init_lora_weights": "pissa"},
    }
    with make_llm(path) as llm:
        for number, (field, more) in enumerate(refused.items(), start=1):
            adapter = tmp_path / field
            peft.get_peft_model(plain(path), peft.LoraConfig(**common, **more)).save_pretrained(adapter)
            (output,) = llm.generate([PROMPTS[0]], lora_request=LoRARequest(field, number, str(adapter)))
            assert f"field {field!r}: not supported" in str(output.error)


HEADS = [
    ("llama", "classify", "SEQ_CLS", ["q_proj", "v_proj"]),
    ("roberta", "classify", "SEQ_CLS", ["query", "value"]),
    ("bert", "token_classify", "TOKEN_CLS", ["key"]),
    ("llama", "embed", "FEATURE_EXTRACTION", "all-linear"),
]


@pytest.mark.parametrize(("model_type", "task", "task_type", "targets"), HEADS)
def test_the_same_outputs_as_peft_of_pooling_models(
    model_type: str, task: str, task_type: str, targets: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    pooling_table.save(model_type, task, path, **LABELS[task])
    config = peft.LoraConfig(task_type=task_type, r=4, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = peft.get_peft_model(plain_pooling(path, task), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(0, 0.3)
    model.eval().save_pretrained(tmp_path / "adapter")
    prompts = pooling_table.prompts()[:3]
    raw = PoolingParams(use_activation=False)
    with LLM(str(path), **ENGINE, runner="pooling") as llm:
        outputs = llm.encode(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            raw,
            lora_request=LoRARequest("adapter", 1, str(tmp_path / "adapter")),
            use_tqdm=False,
        )
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.error is None, output.error
        wanted = expected(model.get_base_model(), task, prompt)
        wanted = wanted[-1] if task == "embed" else wanted
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(torch.tensor(output.outputs.data), wanted, atol=1e-5 * scale, rtol=0)
