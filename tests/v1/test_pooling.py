"""Pooling on V1: embeddings, classes and scores, equal to transformers'."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from checkpoints.quantize import FORMATS, quantize_checkpoint
from dodona import LLM, PoolingParams, SamplingParams
from dodona.kernels.linear.quantized_weight import dequantize, quantize_weight
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.sentence_transformers import read_sentence_transformers
from dodona.oracle.select import select_runner
from dodona.oracle.systems.own.pooler import pooling_settings
from dodona.runners.errors import EngineSetupError, InvalidRequestError, WrongTaskError
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.limits import resolve_limits
from dodona.runners.pooling.pooler import pool
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.v1.packed_model import set_attention
from dodona.runners.v1.pooling.choice import choose
from dodona.runners.v1.pooling.model import batches
from dodona.runners.v1.pooling.runner import V1PoolingRunner
from tests.support import pooling_table, sweep
from tests.support.every_family import make_model
from tests.support.quantized_reference import dense_weight, plain_model

ENGINE = {"device": "cpu", "dtype": "float32", "max_model_len": 64}
WORDS = [f"w{i}" for i in range(100)]
TEXTS = ["w1 w2 w3", "w5", "w9 w8 w7 w6 w5 w4 w3 w2 w1 w0 w11 w12", "W1 w2"]


def save_tokenizer(directory) -> None:
    """BERT's form: [CLS] text [SEP], and a second segment for the second text of a pair."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT as its masked language model is saved, with a tokenizer."""
    directory = tmp_path_factory.mktemp("bert")
    make_model(pooling_table.config_of("bert"), "AutoModelForMaskedLM").save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cross_encoder")
    pooling_table.save("bert", "classify", directory, num_labels=1)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    make_model(pooling_table.config_of("llama")).save_pretrained(directory)
    return directory


def hidden_states(directory, texts):
    """transformers' last hidden states [tokens, size] of each text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]


def with_modules(source, directory, *modules, pooling=None, **files):
    """The model's directory as Sentence Transformers saves it."""
    for file in source.iterdir():
        (directory / file.name).symlink_to(file)
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"{ST}.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(entries))
    (directory / "1_Pooling").mkdir()
    flags = pooling or {"pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **flags})
    )
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


ST = "sentence_transformers.models"
DENSE = [
    {"type": f"{ST}.Transformer", "path": ""},
    {"type": f"{ST}.Pooling", "path": "2_Pooling"},
    {"type": f"{ST}.Dense", "path": "1_Pooling"},
]
PLAIN = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


def embeddings(directory, prompts, **flat):
    with LLM(str(directory), **{**ENGINE, **flat}) as llm:
        outputs = llm.embed(prompts, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(outputs)
    return torch.tensor([output.outputs.embedding for output in outputs])


# --- Equal to transformers


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("llama", "classify"), ("qwen3", "token_classify"), ("gemma3_text", "embed"), ("gpt2", "classify"),
        ("roberta", "classify"), ("xlm-roberta", "embed"), ("distilbert", "token_classify"),
        ("mpnet", "embed"), ("deberta-v2", "classify"), ("modernbert", "classify"), ("electra", "embed"),
        ("nomic_bert", "embed"), ("bert", "token_classify"), ("bloom", "classify"),
        ("neomme", "embed"),
    ],
)  # fmt: skip
def test_a_sample_of_families_runs_as_the_table_says(tmp_path, model_type, task):
    found = pooling_table.attempt(model_type, task, tmp_path)
    assert found["outcome"] in ("batched", "alone"), found
    known = sweep.load(pooling_table.results_file(transformers.__version__))
    if model_type in known:
        assert found["outcome"] == known[model_type][task]["outcome"]


@torch.inference_mode()
def test_capped_scores_stay_capped():
    """transformers 5.17 gives Gemma 2 SDPA, which leaves the cap out; later versions raise there."""
    config = pooling_table.config_of("gemma2")
    config.attn_logit_softcapping = 2.0
    module = make_model(config, "AutoModel")
    prompt = pooling_table.prompts()[1]
    expected = module(input_ids=torch.tensor([prompt])).last_hidden_state[0]
    set_attention(module, "sdpa")
    (found,) = choose(module, max_model_len=64).model.compute([TokenSequence(prompt)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_an_attention_that_leaves_a_mask_out_is_not_used():
    """As transformers 5.17's SDPA of Doge."""

    def sees_all(module, query, key, value, attention_mask, **more):
        return sdpa_attention_forward(module, query, key, value, None, **{**more, "is_causal": False})

    transformers.AttentionInterface.register("sees-all", sees_all)
    module = make_model(pooling_table.config_of("llama"), "AutoModel")
    prompt = pooling_table.prompts()[1]
    expected = module(input_ids=torch.tensor([prompt])).last_hidden_state[0]
    set_attention(module, "sees-all")
    (found,) = choose(module, max_model_len=64).model.compute([TokenSequence(prompt)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_masked_language_model_embeds_by_its_first_token(bert):
    expected = torch.stack([torch.nn.functional.normalize(h[0], dim=0) for h in hidden_states(bert, TEXTS)])
    torch.testing.assert_close(embeddings(bert, TEXTS), expected, atol=1e-5, rtol=0)


def test_a_causal_language_model_embeds_by_its_last_token(llama):
    prompts = pooling_table.prompts()
    model = transformers.AutoModel.from_pretrained(llama, attn_implementation="eager").eval()
    with torch.inference_mode():
        last = [model(input_ids=torch.tensor([p])).last_hidden_state[0, -1] for p in prompts]
    expected = torch.nn.functional.normalize(torch.stack(last), dim=1)
    given = [{"prompt_token_ids": p} for p in prompts]
    # Few rows: the prompts take several steps, and come back in their order.
    found = embeddings(llama, given, convert="embed", max_num_seqs=2, max_num_batched_tokens=64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_sentence_transformers_files_say_how_to_pool(bert, tmp_path):
    directory = with_modules(bert, tmp_path, *PLAIN)
    expected = [torch.nn.functional.normalize(h.mean(0), dim=0) for h in hidden_states(bert, TEXTS)]
    torch.testing.assert_close(embeddings(directory, TEXTS), torch.stack(expected), atol=1e-5, rtol=0)


def test_several_pooling_types_a_dense_layer_and_no_norm(bert, tmp_path):
    flags = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    modules = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    directory = with_modules(
        bert, tmp_path, *modules, pooling=flags, sentence_bert_config={"do_lower_case": True}
    )
    (directory / "2_Dense").mkdir()
    weight, bias = torch.randn(8, 64), torch.randn(8)
    save_file({"linear.weight": weight, "linear.bias": bias}, directory / "2_Dense" / "model.safetensors")
    dense = {"in_features": 64, "out_features": 8, "bias": True}
    (directory / "2_Dense" / "config.json").write_text(json.dumps(dense))
    states = hidden_states(bert, [text.lower() for text in TEXTS])
    expected = [torch.tanh(weight @ torch.cat([h[0], h.max(0).values]) + bias) for h in states]
    torch.testing.assert_close(embeddings(directory, TEXTS), torch.stack(expected), atol=1e-5, rtol=0)


def test_a_cross_encoder_scores_pairs_and_a_reward_is_a_logit(cross_encoder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(cross_encoder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        cross_encoder, attn_implementation="eager"
    ).eval()

    def logit(*texts):
        encoded = tokenizer(*texts, return_tensors="pt")
        with torch.inference_mode():
            return model(**encoded).logits[0, 0]

    assert set(tokenizer(*TEXTS[:2])["token_type_ids"]) == {0, 1}
    with LLM(str(cross_encoder), **ENGINE) as llm:
        scores = [o.outputs.score for o in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]
        apart = [o.outputs.score for o in llm.score(TEXTS, TEXTS, use_tqdm=False)]
        rewards = llm.classify(TEXTS, PoolingParams(use_activation=False), use_tqdm=False)
        ids = llm.score([[2, 3]], [[4, 5]], use_tqdm=False)
        with pytest.raises(InvalidRequestError, match="2 queries for 4 documents"):
            llm.score(TEXTS[:2], TEXTS)
    expected = [float(torch.sigmoid(logit(TEXTS[0], text))) for text in TEXTS]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert apart == pytest.approx([float(torch.sigmoid(logit(t, t))) for t in TEXTS], abs=1e-5)
    assert [o.outputs.probs[0] for o in rewards] == pytest.approx([float(logit(t)) for t in TEXTS], abs=1e-5)
    assert "needs texts" in ids[0].error


def test_embeddings_score_by_their_cosine(bert):
    vectors = [h[0].double() for h in hidden_states(bert, TEXTS)]
    with LLM(str(bert), **ENGINE, pooler_config={"use_activation": False}) as llm:
        scores = llm.score(TEXTS[0], [*TEXTS, [1] * 70], use_tqdm=False)
    expected = [float(torch.cosine_similarity(vectors[0], v, dim=0)) for v in vectors]
    assert [o.outputs.score for o in scores[:-1]] == pytest.approx(expected, abs=1e-5)
    assert scores[-1].outputs is None
    assert "over max_model_len=64" in scores[-1].error


def test_labels_and_probabilities(tmp_path, caplog):
    pooling_table.save("llama", "classify", tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    raw |= {
        "pad_token_id": None,
        "id2label": {"1": "neutral", "0": "bad", "2": "good"},
        "label2id": {"bad": 0, "neutral": 1, "good": 2},
    }
    file.write_text(json.dumps(raw))
    logits = pooling_table.reference(tmp_path, "classify")
    with LLM(str(tmp_path), **ENGINE) as llm:
        found = llm.classify([{"prompt_token_ids": p} for p in pooling_table.prompts()], use_tqdm=False)
    # Without a padding token, transformers classifies one sequence at a time.
    assert "no padding token is defined" in caplog.text
    for output, expected in zip(found, logits, strict=True):
        assert output.outputs.probs == pytest.approx(expected.softmax(0).tolist(), abs=1e-5)
        assert output.outputs.label == ("bad", "neutral", "good")[int(expected.argmax())]


# --- Quantized weights


@pytest.mark.parametrize("made", ["w8a16", "w8a8-int8"])
def test_a_quantized_checkpoint_embeds(llama, tmp_path, made):
    path = tmp_path / made
    quantize_checkpoint(llama, path, made)
    reference = plain_model(path).model
    prompts = pooling_table.prompts()[:3]
    # Rounded activations: another order of sums may move one by a step.
    atol = 1e-5 if made == "w8a16" else 2e-2
    found = embeddings(path, [{"prompt_token_ids": p} for p in prompts], runner="pooling")
    for vector, prompt in zip(found, prompts, strict=True):
        with torch.inference_mode():
            last = reference(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, torch.nn.functional.normalize(last, dim=0), atol=atol, rtol=0)


@pytest.mark.parametrize("head", ["dense", "quantized"])
@torch.no_grad()
def test_a_quantized_classifiers_last_layer_is_read_as_it_is_stored(head, tmp_path):
    """config.json names all linear layers, which is true of the last one or not."""
    source, path = tmp_path / "dense", tmp_path / "quantized"
    pooling_table.save("llama", "classify", source, num_labels=3)
    quantize_checkpoint(source, path, "w8a16")
    config, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    config["quantization_config"] = {**config["quantization_config"], "ignore": []}
    (path / "config.json").write_text(json.dumps(config))
    if head == "quantized":
        parts = FORMATS["w8a16"].store(tensors.pop("score.weight").float())
        tensors |= {f"score.{name}": part for name, part in parts.items()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert "quantized weights (mixed)" in select_runner(str(path)).unsupported.v2
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (name != "score" or head == "quantized"):
            made = FORMATS["w8a16"]
            module.weight.copy_(dense_weight(made.config, made.store(module.weight)))
    expected = [model(input_ids=torch.tensor([ids])).logits[0] for ids in ([2, 9, 8, 7, 3], [4])]
    with LLM(str(path), **ENGINE, skip_tokenizer_init=True) as llm:
        prompts = [{"prompt_token_ids": ids} for ids in ([2, 9, 8, 7, 3], [4])]
        found = llm.classify(prompts, PoolingParams(use_activation=False), use_tqdm=False)
    for output, logits in zip(found, expected, strict=True):
        assert output.outputs.probs == pytest.approx(logits.tolist(), abs=1e-5)


@torch.no_grad()
def test_quantization_at_load_leaves_a_classifiers_last_layer_as_it_is(cross_encoder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        cross_encoder, attn_implementation="eager"
    ).eval()
    for module in model.bert.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(dequantize(quantize_weight(module.weight, kind="int8")))
    expected = float(model(input_ids=torch.tensor([[2, 9, 8, 7, 3]])).logits[0, 0])
    with LLM(str(cross_encoder), **ENGINE, quantization="int8") as llm:
        raw = PoolingParams(use_activation=False)
        found = llm.classify([[2, 9, 8, 7, 3]], raw, use_tqdm=False)[0].outputs.probs[0]
    assert found == pytest.approx(expected, abs=1e-5)


# --- Errors


def test_calls_that_a_model_is_not_served_for(bert, llama, cross_encoder):
    with LLM(str(bert), **ENGINE) as llm:
        with pytest.raises(
            WrongTaskError, match=r"pooling task 'embed' and generates nothing; use LLM\.embed"
        ):
            llm.generate("w1")
        with pytest.raises(WrongTaskError, match=r"LLM\.classify: .*'embed'; use LLM\.embed"):
            llm.classify("w1")
        with pytest.raises(WrongTaskError, match="not for 'classify'"):
            llm.encode("w1", pooling_task="classify")
    match = r"LLM\.embed: .* generate .*runner='pooling'"
    with LLM(str(llama), **ENGINE) as llm, pytest.raises(WrongTaskError, match=match):
        llm.embed([[5, 6]])
    with LLM(str(cross_encoder), **ENGINE) as llm, pytest.raises(WrongTaskError, match=r"use LLM\.classify"):
        llm.embed("w1")


def test_prompts_that_cannot_be_served_have_their_reasons(bert):
    with LLM(str(bert), **{**ENGINE, "max_model_len": 6}) as llm:
        prompts = ["w1", "w1 w2 w3 w4 w5 w6", [5, 999], [], [4, 5, 6], [5] * 6]
        outputs = llm.embed(prompts, use_tqdm=False)
        cut = llm.encode("w1 w2 w3 w4 w5 w6", PoolingParams(truncate_prompt_tokens=-1), use_tqdm=False)[0]
        short = llm.embed("w1 w2", PoolingParams(dimensions=4), use_tqdm=False)[0]
    reasons = [output.error for output in outputs]
    assert reasons[0] is reasons[4] is reasons[5] is None
    assert "8 tokens, which is over max_model_len=6" in reasons[1]
    assert "token id 999 is out of the vocabulary" in reasons[2]
    assert "empty" in reasons[3]
    assert cut.error is None
    assert cut.prompt_token_ids == [2, 6, 7, 8, 9, 3]
    assert "is_matryoshka" in short.error


def test_shorter_embeddings(bert, tmp_path):
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "matryoshka_dimensions": [4, 8]}))
    first = hidden_states(bert, TEXTS[:1])[0][0]
    with LLM(str(tmp_path), **ENGINE, pooler_config={"dimensions": 8}) as llm:
        found = [llm.embed(TEXTS[0], PoolingParams(dimensions=n), use_tqdm=False)[0] for n in (None, 4, 5)]
    for output, size in zip(found[:2], (8, 4), strict=True):
        expected = torch.nn.functional.normalize(first[:size], dim=0)
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=1e-5, rtol=0)
    assert found[2].error == "dimensions=5: the model has 4, 8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules.json": [{"type": "sentence_transformers.models.Pooling", "path": ""}]}, "in this order"),
        ({"modules.json": [{"type": f"{ST}.Transformer", "path": "../x"}]}, "a folder inside"),
        ({"modules.json": [{"type": f"{ST}.Transformer", "path": "0_Transformer"}]}, "must be empty"),
        ({"modules.json": [{"type": "custom_st.Transformer", "path": ""}]}, "whose code is not run"),
        ({"modules.json": [{"type": f"{ST}.Transformer"}, {"type": f"{ST}.Dense"}]}, "late interaction"),
        (
            {"1_Pooling/config.json": {"module_input_name": "token_embeddings"}, "modules.json": DENSE},
            "'module_input_name': expected 'sentence_embedding'",
        ),
        ({"modules.json": {}}, "list of modules"),
        ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": 1}}, "true or false"),
        ({"1_Pooling/config.json": {"pooling_mode_new": True}}, "not 'pooling_mode_new'"),
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, "'pooling_mode'"),
        ({"1_Pooling/config.json": {"pooling_mode": "cls", "include_prompt": False}}, "include_prompt"),
        ({"1_Pooling/config.json": []}, "JSON object"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, "'max_seq_length'"),
    ],
)
def test_files_that_contradict(bert, tmp_path, change, message):
    with_modules(bert, tmp_path, *PLAIN)
    (tmp_path / "2_Pooling").mkdir()
    (tmp_path / "2_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    for name, content in change.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_sentence_transformers(tmp_path)


def test_max_seq_length_is_the_longest_prompt(bert, tmp_path):
    directory = with_modules(bert, tmp_path, *PLAIN, sentence_bert_config={"max_seq_length": 9})
    model = ModelInfo.load(directory)

    def limits(**flat):
        found = resolve_limits(EngineConfig.from_flat(str(directory), device="cpu", **flat), model)
        return found.max_model_len, found.max_num_batched_tokens

    assert limits() == (9, 2048)
    assert limits(max_model_len=20) == (20, 2048)
    with pytest.raises(EngineSetupError, match="for a pooling model a step must hold a whole prompt"):
        limits(max_num_batched_tokens=8)


# --- Parts

IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("more", "labels", "activation"),
    [
        ({}, 2, "softmax"),
        ({"id2label": {"0": "a"}}, 1, "sigmoid"),
        ({"num_labels": 3, "problem_type": "regression"}, 3, "identity"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, 1, "sigmoid"),
        ({"num_labels": 1, "sentence_transformers": {"activation_fn": IDENTITY}}, 1, "identity"),
        ({"num_labels": 2, "sbert_ce_default_activation_function": IDENTITY}, 2, "identity"),
    ],
)  # fmt: skip
def test_labels_and_activation_of_config_json(more, labels, activation):
    raw = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", **more}
    settings = pooling_settings(EngineConfig.from_flat("m"), ModelInfo.from_mapping(raw))
    assert (len(settings.labels), settings.activation) == (labels, activation)


def test_an_unknown_activation_is_named():
    raw = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert",
        "sbert_ce_default_activation_function": "os.system",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"activation: expected one of .* got 'os\.system'"):
        pooling_settings(EngineConfig.from_flat("m"), ModelInfo.from_mapping(raw))


def test_pooling_types_by_their_definition():
    hidden = np.random.default_rng(0).standard_normal((5, 3))
    weights = np.arange(1, 6)
    expected = {
        "CLS": hidden[0],
        "LAST": hidden[4],
        "MEAN": sum(hidden) / 5,
        "MAX": [max(column) for column in hidden.T],
        "MEAN_SQRT_LEN": sum(hidden) / np.sqrt(5),
        "WEIGHTED_MEAN": sum(w * h for w, h in zip(weights, hidden, strict=True)) / 15,
    }
    found = pool(torch.tensor(hidden), tuple(expected))
    np.testing.assert_allclose(found, np.concatenate(list(expected.values())), atol=1e-12)


CHUNKED = [
    ("llama", "embed", "LAST"), ("llama", "embed", "MEAN"), ("qwen3", "embed", "WEIGHTED_MEAN"),
    ("mistral", "embed", "MAX"), ("gemma2", "embed", "CLS"), ("gpt2", "classify", None),
    ("llama", "classify", None), ("qwen3", "token_classify", None),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "task", "kind"), CHUNKED)
def test_prompts_longer_than_a_step_are_computed_in_chunks(model_type, task, kind, tmp_path):
    pooling_table.save(model_type, task, tmp_path, **({} if task == "embed" else {"num_labels": 3}))
    if task == "embed":
        model = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
        with torch.inference_mode():
            expected = [
                wanted_pooled(model(input_ids=torch.tensor([ids])).last_hidden_state[0], kind)
                for ids in pooling_table.prompts()
            ]
    else:
        expected = pooling_table.reference(tmp_path, task)
    settings = {} if kind is None else {"pooler_config": {"pooling_type": kind}}
    engine = {**ENGINE, "max_num_batched_tokens": 16, "runner": "pooling", "skip_tokenizer_init": True}
    with LLM(str(tmp_path), **engine, **settings) as llm:
        assert llm.verdict.runner == "v1"
        prompts = [{"prompt_token_ids": ids} for ids in pooling_table.prompts()]
        found = llm.encode(prompts, PoolingParams(use_activation=False), use_tqdm=False)
    assert max(len(prompt["prompt_token_ids"]) for prompt in prompts) > 2 * 16
    for output, wanted in zip(found, expected, strict=True):
        assert output.error is None, output.error
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(torch.tensor(output.outputs.data), wanted, atol=1e-5 * scale, rtol=0)


def wanted_pooled(hidden, kind):
    weights = torch.arange(1, len(hidden) + 1, dtype=torch.float32)
    return {
        "LAST": hidden[-1],
        "CLS": hidden[0],
        "MEAN": hidden.mean(0),
        "MAX": hidden.amax(0),
        "WEIGHTED_MEAN": weights @ hidden / weights.sum(),
    }[kind]


def test_a_request_that_ends_between_chunks_leaves_nothing(llama):
    config = EngineConfig.from_flat(
        str(llama), **ENGINE, runner="pooling", max_num_batched_tokens=16, skip_tokenizer_init=True
    )
    model = ModelInfo.load(llama)
    runner = V1PoolingRunner(config, model, resolve_limits(config, model))
    runner.load_model()

    def step(number, ids, start, count, freed=()):
        new = [] if start else [NewRequest("r", 0, ids, len(ids), 0, [0], SamplingParams(), 0)]
        ends = start + count == len(ids)
        runner.execute_model(SchedulerOutput(number, freed, new, [], [0], [count], [start], [ends], 0))
        return runner.sample_tokens().result().pooled

    assert step(0, list(range(2, 34)), 0, 16) == {}
    assert list(runner._partial) == [0]
    found = step(1, [5, 6, 7], 0, 3, freed=(0,))
    assert runner._partial == {}
    assert step(2, list(range(2, 34)), 0, 16, freed=(0,)) == {}
    pooled = step(3, list(range(2, 34)), 16, 16)
    assert runner._partial == {}
    assert found.keys() == pooled.keys() == {0}
    runner.shutdown()


@pytest.mark.parametrize(
    ("model_type", "rule"), [("bert", "pooling-whole-prompts"), ("mamba", "pooling-whole-prompts")]
)
def test_who_can_not_go_on_after_a_chunk_is_refused(model_type, rule, tmp_path):
    pooling_table.save(model_type, "embed", tmp_path)
    asked = {"max_num_batched_tokens": 16, "max_model_len": 64, "runner": "pooling", "device": "cpu"}
    config = EngineConfig.from_flat(str(tmp_path), **asked)
    with pytest.raises(UnsupportedConfiguration) as caught:
        select_runner(config)
    assert rule in {reason.rule for reason in caught.value.verdict.refusals}


def test_batches_hold_every_prompt_once_and_little_padding():
    lengths = np.random.default_rng(1).integers(1, 200, 500).tolist()
    found = batches(lengths, 1000)
    assert sorted(i for batch in found for i in batch) == list(range(500))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= 1000
        assert min(lengths[i] for i in batch) >= 0.75 * longest
    assert [len(batch) for batch in batches([5, 5, 5], 0)] == [1, 1, 1]


# --- The running engine


def test_reload_and_sleep(bert, tmp_path):
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(bert / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    with LLM(str(tmp_path), **ENGINE) as llm:
        before = llm.embed(TEXTS[0], use_tqdm=False)[0].outputs.embedding
        llm.sleep()
        llm.wake_up()
        assert llm.embed(TEXTS[0], use_tqdm=False)[0].outputs.embedding == before
        save_file({**tensors, name: tensors[name] * 2}, tmp_path / "model.safetensors", {"format": "pt"})
        llm.reload_weights()
        after = llm.embed(TEXTS[0], use_tqdm=False)[0].outputs.embedding
        llm.load_weights([("embeddings.word_embeddings.weight", tensors[name])])
        assert llm.embed(TEXTS[0], use_tqdm=False)[0].outputs.embedding == before
    doubled = hidden_states(tmp_path, TEXTS[:1])[0][0]
    torch.testing.assert_close(
        torch.tensor(after), torch.nn.functional.normalize(doubled, dim=0), atol=1e-5, rtol=0
    )


def test_a_reload_reads_dense_modules_too(bert, tmp_path):
    """All of another model's weights, or none of them."""
    folders = []
    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        modules = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
        folders.append(with_modules(bert, folder, *modules, pooling={"pooling_mode_cls_token": True}))
        (folder / "2_Dense").mkdir()
        dense = {"in_features": 32, "out_features": 8, "bias": True}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
        tensors = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
        save_file(tensors, folder / "2_Dense" / "model.safetensors")
    expected = [embeddings(folder, TEXTS[:1]) for folder in folders]
    with LLM(str(folders[0]), **ENGINE) as llm:

        def embedding():
            return torch.tensor([llm.embed(TEXTS[0], use_tqdm=False)[0].outputs.embedding])

        llm.reload_weights(folders[1])
        assert torch.equal(embedding(), expected[1])
        with pytest.raises(ConfigError, match=r"2_Dense/model\.safetensors"):
            llm.reload_weights(bert)
        assert torch.equal(embedding(), expected[1])
        llm.reload_weights()
        assert torch.equal(embedding(), expected[0])
    assert not torch.equal(*expected)


def test_threads_share_an_engine_and_numbers_that_are_none_end_one_request(bert):
    found: dict[int, list[float]] = {}
    with LLM(str(bert), **ENGINE, max_num_seqs=3) as llm:
        alone = [llm.embed(text, use_tqdm=False)[0].outputs.embedding for text in TEXTS]

        def work(index: int) -> None:
            found[index] = llm.embed([TEXTS[index]] * 5, use_tqdm=False)[4].outputs.embedding

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(TEXTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, expected in enumerate(alone):
            assert found[index] == pytest.approx(expected, abs=1e-5)
        weight = torch.zeros(131, 32)
        weight[20] = float("nan")
        llm.load_weights([("embeddings.word_embeddings.weight", weight)])
        outputs = llm.embed([[2, 20, 3], [2, 21, 3]], use_tqdm=False)
    assert "NaN" in outputs[0].error
    assert outputs[1].error is None


def test_a_longer_prompt_does_not_change_the_rope_of_another(tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    config = pooling_table.tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    make_model(config, "AutoModel").save_pretrained(tmp_path)
    expected = pooling_table.reference(tmp_path, "embed")
    with LLM(str(tmp_path), **ENGINE, pooler_config={"use_activation": False}) as llm:
        assert "row-by-row" in {found.consequence for found in llm.verdict.consequences}
        found = llm.embed([{"prompt_token_ids": p} for p in pooling_table.prompts()], use_tqdm=False)
    for output, last in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), last, atol=1e-5, rtol=1e-5)
