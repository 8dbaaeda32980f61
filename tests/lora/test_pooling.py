"""Adapters with pooling models: equal to transformers with merged weights, and the adapter's own head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from dodona import LLM, LoRARequest, PoolingParams
from dodona.oracle.select import select_runner
from dodona.runners.errors import InvalidRequestError
from tests.support import pooling_table
from tests.support.adapters import linear_layers, merge, scale_of, write_adapter

ENGINE: Mapping[str, Any] = {
    "device": "cpu", "dtype": "float32", "max_model_len": 64, "skip_tokenizer_init": True,
    "enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_num_seqs": 3,
}  # fmt: skip
LABELS = {"embed": {}, "classify": {"num_labels": 3}, "token_classify": {"num_labels": 4}}
CLASSES = {
    "embed": "AutoModel",
    "classify": "AutoModelForSequenceClassification",
    "token_classify": "AutoModelForTokenClassification",
}


def plain(path: Path, task: str) -> Any:
    """transformers' model as V1 makes it: without BERT's pooling layer where hidden states are pooled."""
    more = {"add_pooling_layer": False} if (task, path.name) == ("embed", "bert") else {}
    return getattr(transformers, CLASSES[task]).from_pretrained(path, dtype=torch.float32, **more).eval()


def write(
    folder: Path, model: Any, ends: Sequence[str], *, seed: int, r: int = 4, head: bool = False
) -> Path:
    """An adapter of the base model's layers with these names; with head also of the last ones."""
    base = f"{model.base_model_prefix}."
    layers = {
        name: sizes
        for name, sizes in linear_layers(model, ends).items()
        if model.base_model is model or name.startswith(base)
    }
    generator = torch.Generator().manual_seed(seed)

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in model.named_parameters():
            if head and not name.startswith(base):
                tensors[f"base_model.model.{name}"] = 0.3 * torch.randn(parameter.shape, generator=generator)

    saved = {"modules_to_save": ["classifier", "score"]} if head else {}
    return write_adapter(folder, layers, r=r, seed=seed, change=add_head, **saved)


def adapted(path: Path, task: str, adapter: Path, r: int = 4) -> Any:
    model = merge(plain(path, task), adapter, scale_of(8, r))
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        if ".lora_" not in name:
            model.get_parameter(name.removeprefix("base_model.model.")).data.copy_(tensor)
    return model


def expected(model: Any, task: str, prompt: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([list(prompt)]))
    return output.last_hidden_state[0] if task == "embed" else output.logits[0]


FAMILIES = [
    ("bert", "embed", ["query", "dense"]),
    ("llama", "embed", ["q_proj", "v_proj", "down_proj"]),
    ("llama", "classify", ["k_proj", "up_proj"]),
    ("roberta", "classify", ["query", "value"]),  # a head of two layers
    ("bert", "token_classify", ["key", "value"]),
    ("gpt2", "classify", ["c_attn", "c_fc"]),  # longer prompts in chunks
    ("convbert", "classify", ["query"]),  # prompts are computed one by one
]


@pytest.mark.parametrize(("model_type", "task", "ends"), FAMILIES)
def test_rows_of_several_adapters_and_of_none(model_type, task, ends, tmp_path):
    path = tmp_path / model_type
    pooling_table.save(model_type, task, path, **LABELS[task])
    base = plain(path, task)
    write(tmp_path / "a", base, ends, seed=1)
    write(tmp_path / "b", base, ends[:1], seed=2, r=2, head=task != "embed")
    models = {0: base, 1: adapted(path, task, tmp_path / "a"), 2: adapted(path, task, tmp_path / "b", 2)}
    requests = {
        0: None,
        1: LoRARequest("a", 1, str(tmp_path / "a")),
        2: LoRARequest("b", 2, str(tmp_path / "b")),
    }
    prompts, which = pooling_table.prompts(), (0, 1, 2, 2, 1, 0)
    settings: dict[str, Any] = {"pooler_config": {"pooling_type": "LAST"}} if task == "embed" else {}
    if model_type == "gpt2":
        settings["max_num_batched_tokens"] = 16
    with LLM(str(path), **ENGINE, runner="pooling", **settings) as llm:
        assert llm.verdict.runner == "v1"
        raw = PoolingParams(use_activation=False)
        outputs = llm.encode(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            raw,
            lora_request=[requests.get(i) for i in which],
            use_tqdm=False,
        )
    for index, prompt, output in zip(which, prompts, outputs, strict=True):
        assert output.error is None, output.error
        found, wanted = torch.tensor(output.outputs.data), expected(models[index], task, prompt)
        wanted = wanted[-1] if task == "embed" else wanted
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found, wanted, atol=1e-5 * scale, rtol=0)
    # the adapters make a difference
    assert not torch.allclose(
        expected(models[1], task, prompts[1]), expected(base, task, prompts[1]), atol=1e-2
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "llama"
    pooling_table.save("llama", "classify", path, num_labels=3)
    return path


def test_the_calls_take_adapters_and_name_what_is_wrong(classifier, tmp_path):
    base = plain(classifier, "classify")
    write(tmp_path / "a", base, ["q_proj"], seed=1, head=True)
    good = LoRARequest("a", 1, str(tmp_path / "a"))
    prompts = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [9, 4]}]

    def spoilt(name: str, change: Any) -> LoRARequest:
        layers = linear_layers(base, ["q_proj"])
        write_adapter(tmp_path / name, layers, seed=1, change=change, modules_to_save=["classifier", "score"])
        return LoRARequest(name, 2, str(tmp_path / name), load_inplace=True)

    head, of = "base_model.model.score.weight", torch.ones
    wrong = {
        r"lacks the tensor score\.weight": spoilt("lost", None),
        r"score\.weight.*expected shape": spoilt("small", lambda t: t.update({head: of(2, 32)})),
        r"tensor 'x\.weight'": spoilt("other", lambda t: t.update({head: of(3, 32), "x.weight": of(1)})),
    }
    with LLM(str(classifier), **ENGINE) as llm:
        found = llm.classify(prompts, lora_request=[good, None], use_tqdm=False)
        assert llm.list_loras() == {1}
        for output, model in zip(found, (adapted(classifier, "classify", tmp_path / "a"), base), strict=True):
            wanted = expected(model, "classify", output.prompt_token_ids).softmax(0)
            assert output.outputs.probs == pytest.approx(wanted.tolist(), abs=1e-5)
        for words, request in wrong.items():
            (output,) = llm.classify(prompts[:1], lora_request=request, use_tqdm=False)
            assert output.outputs is None
            assert re.search(words, output.error), output.error
        with pytest.raises(InvalidRequestError, match="1 lora_requests for 2 prompts"):
            llm.classify(prompts, lora_request=[good], use_tqdm=False)
    with LLM(str(classifier), **{name: value for name, value in ENGINE.items() if "lora" not in name}) as llm:
        (output,) = llm.classify(prompts[:1], lora_request=good, use_tqdm=False)
        assert "enable_lora=True" in output.error


def test_pooling_with_adapters_is_v1s(classifier):
    verdict = select_runner({"model_config": {"model": str(classifier)}, "lora_config": {}})
    assert verdict.runner == "v1"
    assert not verdict.refusals
