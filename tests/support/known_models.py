"""Writes oracle/models/known_models.json from transformers: ``python -m tests.support.known_models``."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from packaging.version import Version

from dodona.oracle.models.widths import DENSE_FIELDS, EXPERT_FIELDS, SHARED_COUNTS, SHARED_FIELDS

TARGET = Path(__file__).parents[2] / "oracle" / "models" / "known_models.json"

LANGUAGE_TASKS = (
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "RETRIEVAL",
)
"""Automatic classes of transformers whose architectures an engine of language models may be given."""

FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "is_encoder_decoder",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "pad_token_id",
    "rms_norm_eps",
    *(field for field in DENSE_FIELDS if field != "intermediate_size"),
    *SHARED_FIELDS,
    *EXPERT_FIELDS,
    *SHARED_COUNTS,
)

NOT_MADE = ("musicgen", "musicgen_melody")
"""Types of the automatic class for causal language models whose model takes another configuration."""


PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
"""What a rotary embedding is where nothing says otherwise."""


def architectures() -> list[str]:
    """Names of all classes that transformers' automatic classes know for language models."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in LANGUAGE_TASKS]
    for mapping in (modeling_auto.MODEL_MAPPING_NAMES, *mappings):
        for value in mapping.values():
            names.update([value] if isinstance(value, str) else value)
    return sorted(names)


def model_types() -> list[str]:
    """Model types of language models, and of the language models inside wrappers."""
    from transformers.models.auto import configuration_auto, modeling_auto

    types: set[str] = set()
    for task in LANGUAGE_TASKS:
        types.update(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))
    inner = {t for t in map(text_model_type, sorted(types)) if t}
    return sorted((types | inner) & set(configuration_auto.CONFIG_MAPPING_NAMES))


def text_model_type(model_type: str) -> str | None:
    """Model type of a wrapper's language model, where its class fixes or defaults it."""
    cls = config_class(model_type)
    sub = (getattr(cls, "sub_configs", None) or {}).get("text_config")
    if sub is None:
        return None
    if sub.__name__ != "AutoConfig":
        return sub.model_type or None
    try:
        return cls().text_config.model_type
    except Exception:
        return None


def config_class(model_type: str) -> Any:
    """The configuration class of a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def modelling_code(model_type: str) -> str:
    """The family's source."""
    import importlib

    module = config_class(model_type).__module__.replace("configuration_", "modeling_")
    source = importlib.util.find_spec(module)
    return "" if source is None else Path(source.origin).read_text()


def is_causal(model_type: str) -> bool:
    """Whether transformers' automatic class for causal language models makes a model of the type."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in NOT_MADE


POOLING_TASKS = {
    "embed": "MODEL",
    "classify": "MODEL_FOR_SEQUENCE_CLASSIFICATION",
    "token_classify": "MODEL_FOR_TOKEN_CLASSIFICATION",
}
"""Pooling task → transformers' automatic class."""


def pooling_tasks(model_type: str) -> list[str]:
    """The tasks whose automatic class makes a model of the type, of types that are language models alone."""
    from transformers.models.auto import modeling_auto

    if not (is_masked(model_type) or is_causal(model_type)):
        return []
    return [
        task
        for task, name in POOLING_TASKS.items()
        if model_type in getattr(modeling_auto, f"{name}_MAPPING_NAMES")
    ]


def is_masked(model_type: str) -> bool:
    """Whether the automatic class for masked language models makes a model of the type."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


_AFTER_PADDING = re.compile(
    r"nn.Embedding\(\s*config.max_position_embeddings, config.hidden_size, padding_idx=self.padding_idx"
)


def entry(model_type: str) -> dict[str, Any]:
    """What the table says of one model type."""
    cls = config_class(model_type)
    aliases = {f: cls.attribute_map[f] for f in FIELDS if cls.attribute_map.get(f, f) != f}
    defaults = {}
    for field in FIELDS:
        value = getattr(cls, aliases.get(field, field), None)
        # False and None are what a missing field reads as anyway, but for the one that is true unless it is
        # false.
        if isinstance(value, (int, float, str)) and (
            value not in (False, "") or field == "use_sliding_window"
        ):
            defaults[field] = value
    try:
        made = cls()
    except Exception:
        made = None
    for field in FIELDS:
        # Some classes work out a default only when they are made.
        value = getattr(made, field, None) if "expert" in field else None
        if isinstance(value, int) and value > 0:
            defaults.setdefault(field, value)
    rope = getattr(made, "rope_parameters", None)
    kinds = sorted(set(getattr(made, "layer_types", None) or ()))
    if "tie_word_embeddings" not in vars(cls) and getattr(made, "tie_word_embeddings", None) is True:
        defaults["tie_word_embeddings"] = True
    fields = getattr(cls, "__annotations__", {})
    code = modelling_code(model_type)
    found = {
        "text": text_model_type(model_type),
        "rotary": "rope_parameters" in fields or hasattr(cls, "rope_parameters"),
        "causal": is_causal(model_type),
        "masked": is_masked(model_type),
        "pooling": pooling_tasks(model_type),
        "positions_after_padding": bool(_AFTER_PADDING.search(code)),
        "stateful": "_is_stateful = True" in code,
        "rope": rope if rope != PLAIN_ROPE else None,
        "kinds": kinds if kinds != ["full_attention"] or defaults.get("sliding_window") else None,
        "aliases": aliases,
        "defaults": defaults,
    }
    return {key: value for key, value in found.items() if value}


ONLY_IN_VLLM = ("KimiK3ForConditionalGeneration", "LongcatFlashNgramForCausalLM")
"""Architectures that released versions of vLLM name and transformers has no class for."""


def text() -> str:
    """The content of oracle/models/known_models.json: a line for each model type.

    Of a later version than the file's, only the types that came with it are written: they have `since`.
    Run it with each version of the supported range that adds types, from the lowest up.
    """
    import transformers

    version = transformers.__version__
    minor = ".".join(version.split(".")[:2])
    written = json.loads(TARGET.read_text(encoding="utf-8"))
    if Version(version) > Version(written["transformers"]):
        entries = dict(written["models"])
        added = [t for t in model_types() if entries.get(t, {"since": minor}).get("since") == minor]
        entries |= {t: {**entry(t), "since": minor} for t in added}
        version, named = written["transformers"], {*written["architectures"], *architectures()}
    else:
        old = {t: {"since": e["since"]} for t, e in written["models"].items() if "since" in e}
        entries = {t: entry(t) | old.get(t, {}) for t in model_types()}
        later = {
            t: e for t, e in written["models"].items() if Version(e.get("since", "0")) > Version(version)
        }
        entries, named = {**later, **entries}, {*written["architectures"], *architectures(), *ONLY_IN_VLLM}
    names = ", ".join(json.dumps(name) for name in sorted(named))
    models = [
        f"{json.dumps(t)}: {json.dumps(entries[t], separators=(',', ':'), sort_keys=True)}"
        for t in sorted(entries)
    ]
    return "\n".join(
        [
            "{",
            f' "transformers": {json.dumps(version)},',
            ' "architectures": [',
            textwrap.fill(names, 110),
            " ],",
            ' "models": {',
            ",\n".join(models),
            " }",
            "}\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
