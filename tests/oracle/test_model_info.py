"""ModelInfo against transformers' configuration classes, and its errors on broken files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from transformers import AutoConfig

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.config_files import MAX_CONFIG_BYTES
from dodona.oracle.models.model_info import ModelInfo

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
    "rope_theta": 500000.0,
}


class Family(NamedTuple):
    """A configuration class, its arguments, and what of it ModelInfo must tell (by hand: what the model
    code does)."""

    name: str
    config: str
    arguments: dict[str, Any]
    architecture: str
    expected: dict[str, Any]


DENSE = {"is_moe": False, "has_inner_state": False, "is_encoder_decoder": False, "quant_method": None}
FAMILIES = [
    Family(
        "llama", "LlamaConfig", SMALL, "LlamaForCausalLM", {**DENSE, "rope_type": "default", "head_size": 16}
    ),
    Family(
        "llama-yarn",
        "LlamaConfig",
        {**SMALL, "rope_parameters": YARN},
        "LlamaForCausalLM",
        {**DENSE, "rope_type": "yarn"},
    ),
    Family(
        "llama3-biased",
        "LlamaConfig",
        {**SMALL, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
        "LlamaForCausalLM",
        {**DENSE, "rope_type": "llama3", "attention_bias": True, "mlp_bias": True, "head_size": 32},
    ),
    Family(
        "mistral-sliding",
        "MistralConfig",
        {**SMALL, "sliding_window": 32},
        "MistralForCausalLM",
        {**DENSE, "sliding_window": 32, "layer_kinds": ("sliding_attention",)},
    ),
    Family(
        "mistral-full",
        "MistralConfig",
        {**SMALL, "sliding_window": None},
        "MistralForCausalLM",
        {**DENSE, "sliding_window": None, "layer_kinds": ("full_attention",)},
    ),
    Family("qwen2", "Qwen2Config", SMALL, "Qwen2ForCausalLM", {**DENSE, "sliding_window": None}),
    Family(
        "qwen3", "Qwen3Config", SMALL, "Qwen3ForCausalLM", {**DENSE, "head_size": 128, "sliding_window": None}
    ),
    Family(
        "qwen3-sliding",
        "Qwen3Config",
        {**SMALL, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        "Qwen3ForCausalLM",
        {**DENSE, "sliding_window": 16, "layer_kinds": ("full_attention", "sliding_attention")},
    ),
    Family("gemma2", "Gemma2Config", SMALL, "Gemma2ForCausalLM", {**DENSE, "head_size": 256}),
    Family("gemma3", "Gemma3TextConfig", SMALL, "Gemma3ForCausalLM", {**DENSE, "rope_type": "mixed"}),
    Family("phi3", "Phi3Config", {**SMALL, "pad_token_id": 0}, "Phi3ForCausalLM", DENSE),
    Family(
        "gpt2",
        "GPT2Config",
        {"n_embd": 64, "n_head": 4, "n_layer": 2},
        "GPT2LMHeadModel",
        {"rope_type": "none"},
    ),
    Family(
        "mixtral",
        "MixtralConfig",
        {**SMALL, "num_local_experts": 4},
        "MixtralForCausalLM",
        {"is_moe": True, "num_experts": 4},
    ),
    Family(
        "qwen3-moe",
        "Qwen3MoeConfig",
        {**SMALL, "num_experts": 8},
        "Qwen3MoeForCausalLM",
        {"is_moe": True, "num_experts": 8},
    ),
    Family(
        "deepseek-v3",
        "DeepseekV3Config",
        {**SMALL, "n_routed_experts": 8, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8},
        "DeepseekV3ForCausalLM",
        {"is_moe": True, "use_mla": True, "head_size": 32},
    ),
    Family(
        "gpt-oss",
        "GptOssConfig",
        {**SMALL, "num_local_experts": 4},
        "GptOssForCausalLM",
        {"is_moe": True, "attention_bias": True, "rope_type": "yarn"},
    ),
    Family(
        "mamba",
        "MambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 260},
        "MambaForCausalLM",
        {"is_moe": False, "has_inner_state": True, "is_attention_free": True, "rope_type": "none"},
    ),
    Family(
        "mamba2",
        "Mamba2Config",
        {
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "vocab_size": 260,
        },
        "Mamba2ForCausalLM",
        {"has_inner_state": True, "is_attention_free": True},
    ),
    Family(
        "jamba",
        "JambaConfig",
        {**SMALL, "num_experts": 4},
        "JambaForCausalLM",
        {"is_moe": True, "has_inner_state": True, "is_attention_free": False},
    ),
    Family(
        "bamba",
        "BambaConfig",
        {**SMALL, "attn_layer_indices": [1]},
        "BambaForCausalLM",
        {"is_moe": False, "has_inner_state": True, "is_attention_free": False},
    ),
    Family(
        "qwen3-next",
        "Qwen3NextConfig",
        {**SMALL, "num_experts": 4},
        "Qwen3NextForCausalLM",
        {"is_moe": True, "has_inner_state": True, "is_attention_free": False},
    ),
    Family(
        "lfm2",
        "Lfm2Config",
        {**SMALL, "full_attn_idxs": [1]},
        "Lfm2ForCausalLM",
        {"has_inner_state": True, "is_attention_free": False},
    ),
    Family(
        "t5",
        "T5Config",
        {"d_model": 64, "num_heads": 4, "d_kv": 16, "num_layers": 2, "vocab_size": 260},
        "T5ForConditionalGeneration",
        {"is_encoder_decoder": True, "rope_type": "none", "head_size": 16},
    ),
    Family(
        "bert",
        "BertConfig",
        {k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
        "BertForSequenceClassification",
        {"is_encoder_decoder": False, "rope_type": "none", "default_runner": "pooling"},
    ),
    Family(
        "llava",
        "LlavaConfig",
        {"text_config": {"model_type": "llama", **SMALL}},
        "LlavaForConditionalGeneration",
        {"is_multimodal": True, "is_moe": False, "model_type": "llama", "default_runner": "generate"},
    ),
    Family(
        "gemma3-multimodal",
        "Gemma3Config",
        {"text_config": {"model_type": "gemma3_text", **SMALL}},
        "Gemma3ForConditionalGeneration",
        {"is_multimodal": True, "model_type": "gemma3_text", "head_size": 256},
    ),
    Family(
        "qwen2-vl",
        "Qwen2VLConfig",
        {
            "text_config": {
                **SMALL,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 3, 3],
                },
            }
        },
        "Qwen2VLForConditionalGeneration",
        {"is_multimodal": True, "rope_type": "mrope"},
    ),
    Family(
        "stablelm-partial",
        "StableLmConfig",
        {**SMALL, "partial_rotary_factor": 0.25},
        "StableLmForCausalLM",
        {"is_moe": False},
    ),
]


def write(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def saved(family: Family, directory: Path) -> Any:
    config = getattr(transformers, family.config)(**family.arguments)
    config.architectures = [family.architecture]
    config.save_pretrained(directory)
    return AutoConfig.from_pretrained(directory).get_text_config()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_sizes_agree_with_transformers(family: Family, tmp_path: Path) -> None:
    reference, info = saved(family, tmp_path), ModelInfo.load(tmp_path)
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if field == "num_attention_heads" and info.is_attention_free:
            assert info.num_attention_heads is None
            continue
        assert getattr(info, field) == getattr(reference, field), field
    for field in ("intermediate_size", "max_position_embeddings"):
        if isinstance(getattr(reference, field, None), int) and getattr(info, field) is not None:
            assert getattr(info, field) == getattr(reference, field), field
    if not info.is_attention_free:
        kv_heads = getattr(reference, "num_key_value_heads", None) or reference.num_attention_heads
        assert info.num_key_value_heads == kv_heads
        if not info.use_mla:
            size = (
                getattr(reference, "head_dim", None) or reference.hidden_size // reference.num_attention_heads
            )
            assert info.head_size == size
    assert info.architectures == (family.architecture,)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_structure_is_told(family: Family, tmp_path: Path) -> None:
    saved(family, tmp_path)
    info = ModelInfo.load(tmp_path)
    assert {name: getattr(info, name) for name in family.expected} == family.expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_rope_agrees_with_transformers(family: Family, tmp_path: Path) -> None:
    reference, info = saved(family, tmp_path), ModelInfo.load(tmp_path)
    check_rope(info, reference)


def check_rope(info: ModelInfo, reference: Any) -> None:
    parameters = getattr(reference, "rope_parameters", None)
    if not parameters:
        assert info.rope is None
        return
    assert info.rope is not None
    if all(isinstance(value, dict) for value in parameters.values()):
        for kind, expected in parameters.items():
            rope = info.rope.by_layer_type[kind] if info.rope.by_layer_type else info.rope
            assert (rope.rope_type, rope.theta) == (expected["rope_type"], expected["rope_theta"])
        return
    kind = "mrope" if "mrope_section" in parameters else parameters["rope_type"]
    assert (info.rope.rope_type, info.rope.theta) == (kind, parameters["rope_theta"])
    assert info.rope.partial_rotary_factor == parameters.get("partial_rotary_factor", 1.0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_layer_kinds_agree_with_transformers(family: Family, tmp_path: Path) -> None:
    reference, info = saved(family, tmp_path), ModelInfo.load(tmp_path)
    types = getattr(reference, "layer_types", None)
    if types and info.has_inner_state:
        # Where such layers stand follows from fields of each family's own; that there are some is what
        # counts.
        assert info.layer_types in (None, tuple(types))
        assert "linear_attention" in types or "conv" in types
    elif types:
        assert info.layer_kinds == tuple(sorted(set(types)))
        assert info.layer_types in (None, tuple(types))


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if "text_config" not in f.arguments], ids=lambda f: f.name
)
def test_fields_left_out_hold_the_family_defaults(family: Family, tmp_path: Path) -> None:
    model_type = getattr(transformers, family.config).model_type
    write(tmp_path, {"model_type": model_type, "architectures": [family.architecture]})
    reference, info = AutoConfig.from_pretrained(tmp_path).get_text_config(), ModelInfo.load(tmp_path)
    assert info.hidden_size == reference.hidden_size
    assert info.num_hidden_layers == reference.num_hidden_layers
    assert info.is_encoder_decoder == reference.is_encoder_decoder
    assert info.tie_word_embeddings == reference.tie_word_embeddings
    assert info.attention_bias == bool(getattr(reference, "attention_bias", False))
    assert info.text.get("rms_norm_eps") == getattr(reference, "rms_norm_eps", None)
    check_rope(info, reference)
    window = getattr(reference, "sliding_window", None)
    assert info.sliding_window == window
    types = getattr(reference, "layer_types", None)
    if types:
        assert info.layer_kinds == tuple(sorted(set(types)))


def test_a_wrapper_with_an_almost_empty_text_config_has_the_inner_defaults(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "text_config": {"model_type": "mistral", "vocab_size": 32064},
            "vision_config": {"model_type": "clip_vision_model"},
        },
    )
    reference, info = AutoConfig.from_pretrained(tmp_path).get_text_config(), ModelInfo.load(tmp_path)
    assert (info.hidden_size, info.num_key_value_heads) == (
        reference.hidden_size,
        reference.num_key_value_heads,
    )
    assert info.vocab_size == 32064


OLD_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL, "torch_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("scaling", "kind"),
    [
        (None, "default"),
        ({"type": "linear", "factor": 2.0}, "linear"),
        ({"rope_type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_theta"}}, "llama3"),
        ({"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}, "longrope"),
    ],
)
def test_the_older_spelling_of_rope(scaling: dict[str, Any] | None, kind: str) -> None:
    info = ModelInfo.from_mapping({**OLD_LLAMA, "rope_theta": 500000.0, "rope_scaling": scaling})
    assert info.rope is not None
    assert (info.rope.rope_type, info.rope.theta) == (kind, 500000.0)
    assert "factor" not in (scaling or {}) or info.rope.parameters["factor"] == scaling["factor"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mixtral", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("phi", {"rope_theta": 5000.0}),
        ("gpt_neox", {"rotary_emb_base": 5000}),
        ("gpt_neox", {"rotary_pct": 0.5}),
        ("gpt_oss", {}),
        ("cohere", {}),
        ("olmo3", {}),
        ("modernbert", {}),
    ],
)
def test_what_is_left_out_of_rope_is_the_family_s(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, {"model_type": model_type, "architectures": ["AnyForCausalLM"], **fields})
    check_rope(ModelInfo.load(tmp_path), AutoConfig.from_pretrained(tmp_path).get_text_config())


def test_dtype_is_read_in_both_spellings() -> None:
    assert ModelInfo.from_mapping(OLD_LLAMA).dtype == "bfloat16"
    assert ModelInfo.from_mapping({**OLD_LLAMA, "dtype": "torch.float16"}).dtype == "float16"


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "GPTQ", "bits": 4}}, "gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"bits": 4}}, "unspecified"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {}}, None),
        ({"quantization_config": None}, None),
    ],
)
def test_quantization_method(config: dict[str, Any], method: str | None) -> None:
    assert ModelInfo.from_mapping({**OLD_LLAMA, **config}).quant_method == method


def test_quantization_tools_leave_files_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, OLD_LLAMA)
    assert ModelInfo.load(tmp_path).quant_method is None
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert ModelInfo.load(tmp_path).quant_method == "modelopt"


def test_a_pooling_module_makes_a_causal_model_an_embedder(tmp_path: Path) -> None:
    write(tmp_path, OLD_LLAMA)
    assert ModelInfo.load(tmp_path).default_runner == "generate"
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert ModelInfo.load(tmp_path).default_runner == "pooling"


@pytest.mark.parametrize(
    ("architecture", "runner"),
    [
        ("LlamaForCausalLM", "generate"),
        ("GPT2LMHeadModel", "generate"),
        ("LlamaForSequenceClassification", "pooling"),
        ("BertModel", "pooling"),
        ("BertForMaskedLM", "pooling"),
        ("WhisperForConditionalGeneration", "generate"),
    ],
)
def test_runner_by_architecture(architecture: str, runner: str) -> None:
    assert ModelInfo.from_mapping({**OLD_LLAMA, "architectures": [architecture]}).default_runner == runner


def test_math_modifiers_are_those_in_effect() -> None:
    plain = ModelInfo.from_mapping(
        {**OLD_LLAMA, "logit_scale": 1.0, "attn_logit_softcapping": None, "is_causal": True}
    )
    assert plain.math_modifiers == ()
    bent = ModelInfo.from_mapping(
        {**OLD_LLAMA, "logit_scale": 0.5, "attn_logit_softcapping": 50.0, "is_causal": False}
    )
    assert bent.math_modifiers == ("attn_logit_softcapping", "is_causal", "logit_scale")


@pytest.mark.parametrize(
    ("model_type", "fields", "experts"),
    [
        ("qwen3_moe", {"num_experts": 8}, 8),
        ("qwen3_moe", {"num_local_experts": 8}, 8),
        ("qwen3_moe", {"num_experts": 0}, 0),
        ("qwen3_moe", {}, 128),
        ("mixtral", {}, 8),
        ("dbrx", {"ffn_config": {"moe_num_experts": 16}}, 16),
        ("llama", {}, 0),
    ],
)
def test_experts_under_any_name(model_type: str, fields: dict[str, Any], experts: int) -> None:
    info = ModelInfo.from_mapping({"model_type": model_type, "architectures": ["AnyForCausalLM"], **fields})
    assert (info.num_experts, info.is_moe) == (experts, experts > 0)


def test_layers_that_differ_one_by_one_are_a_modifier() -> None:
    info = ModelInfo.from_mapping({**OLD_LLAMA, "per_layer_config": {"1": {"num_key_value_heads": 1}}})
    assert info.math_modifiers == ("per_layer_config",)


def test_heads_that_do_not_divide() -> None:
    assert ModelInfo.from_mapping({**OLD_LLAMA, "num_key_value_heads": 3}).num_queries_per_kv is None
    assert ModelInfo.from_mapping(OLD_LLAMA).num_queries_per_kv == 2


def test_partial_rotary_in_each_spelling() -> None:
    for fields in (
        {"partial_rotary_factor": 0.5},
        {"rotary_pct": 0.5},
        {"rotary_dim": 8},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ):
        rope = ModelInfo.from_mapping({**OLD_LLAMA, **fields}).rope
        assert rope is not None
        assert rope.partial_rotary_factor == 0.5


def test_an_unknown_model_type_is_read_by_what_it_says() -> None:
    info = ModelInfo.from_mapping(
        {**OLD_LLAMA, "model_type": "brand_new", "layer_types": ["mamba", "full_attention"], "num_experts": 3}
    )
    assert (info.has_inner_state, info.is_attention_free, info.is_moe) == (True, False, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", "32"),
        ("text_config", [1]),
        ("text_config", "llama"),
        ("hidden_size", 64.5),
        ("hidden_size", -1),
        ("vocab_size", True),
        ("architectures", None),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [1]),
        ("attention_bias", "yes"),
        ("hidden_act", 3),
        ("rope_scaling", "yarn"),
        ("rope_theta", "1e4"),
        ("layer_types", [1]),
        ("quantization_config", "gptq"),
        ("torch_dtype", 16),
        ("eos_token_id", "2"),
        ("model_type", 7),
    ],
)
def test_wrong_types_name_file_and_field(tmp_path: Path, field: str, value: object) -> None:
    write(tmp_path, {**OLD_LLAMA, field: value})
    with pytest.raises(ConfigError) as caught:
        ModelInfo.load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "config.json") in message
    assert field in message
    assert "expected" in message


@pytest.mark.parametrize(
    ("content", "sign"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b"[" * 100_000, "nests deeper than 64 levels"),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "nests deeper than 64 levels"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' is given twice"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, content: bytes, sign: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=sign) as caught:
        ModelInfo.load(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        ModelInfo.load(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigError, match="check the path"):
        ModelInfo.load(tmp_path)


def test_the_cache_sees_a_changed_file(tmp_path: Path) -> None:
    write(tmp_path, OLD_LLAMA)
    first = ModelInfo.load(tmp_path)
    assert ModelInfo.load(tmp_path) is first
    write(tmp_path, {**OLD_LLAMA, "hidden_size": 128})
    assert ModelInfo.load(tmp_path).hidden_size == 128
    write(tmp_path, {**OLD_LLAMA, "hidden_size": 256})
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert ModelInfo.load(tmp_path).hidden_size == 256


@pytest.mark.parametrize(("uses", "kinds"), [(False, ("full_attention",)), (True, ("sliding_attention",))])
def test_a_window_that_is_switched_off_is_no_window(uses: bool, kinds: tuple[str, ...]) -> None:
    raw = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 2}
    model = ModelInfo.from_mapping({**raw, "sliding_window": 64, "use_sliding_window": uses})
    assert model.layer_kinds == kinds
    assert model.sliding_window == (64 if uses else None)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("lfm2", {}),
        ("lfm2", {"full_attn_idxs": [0, 1]}),
        ("lfm2", {"full_attn_idxs": [1]}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"], "mamba_d_state": 8}),
        ("granitemoehybrid", {"layer_types": ["attention", "attention"], "mamba_d_state": 8}),
        ("falcon_h1", {}),
        ("zaya", {}),
        ("bamba", {"attn_layer_indices": [1]}),
    ],
)
def test_listed_layers_decide_whether_there_are_inner_states(model_type: str, fields: dict[str, Any]) -> None:
    raw = {"model_type": model_type, "num_hidden_layers": 2, **fields}
    config = transformers.CONFIG_MAPPING[model_type].from_dict(raw)
    layers = transformers.DynamicCache(config=config).layers
    info = ModelInfo.from_mapping({"architectures": ["SomeForCausalLM"], **raw})
    assert info.has_inner_state == any(hasattr(layer, "conv_states") for layer in layers)


@pytest.mark.parametrize(
    ("heads", "largest"), [([2, 0], 2), ([0, 0], None), ([-1, 4], None), ([4, 10**30], None)]
)
def test_a_layer_may_have_nothing_of_what_others_have(heads: list[int], largest: int | None) -> None:
    raw = {"architectures": ["XForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": heads}
    if largest is not None:
        assert ModelInfo.from_mapping(raw).num_key_value_heads == largest
        return
    with pytest.raises(ConfigError, match="'num_key_value_heads': expected a whole number from 1 "):
        ModelInfo.from_mapping(raw)
