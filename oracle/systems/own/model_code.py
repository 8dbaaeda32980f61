"""What transformers' code of a model can serve: alone or in batches, and up to which length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.known_models import release
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import (
    CAUSAL_FROM,
    PACKED_FROM,
    POOLED_ALONE,
    POOLED_WHOLE,
    ROW_BY_ROW,
    ROW_BY_ROW_WRAPPERS,
)
from dodona.oracle.models.sentence_transformers import read_sentence_transformers
from dodona.oracle.systems.own.pooling import has_pooling_model, pooling_task
from dodona.oracle.systems.own.resolved import resolved_runner_type

DECODERS_BY_FLAG = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
)  # fmt: skip
"""Model types whose causal language models are causal only with `is_decoder`."""

PROMPT_STEPS = ("one", "several", "too_long")
"""Values of `prompt_steps` of a pooling model."""


def outgrows_rope(config: EngineConfig, model: ModelInfo) -> bool:
    """Whether sequences may grow beyond the length up to which all rows share one set of rotary frequencies.

    transformers chooses the frequencies of "longrope" and "dynamic" by the longest sequence of a batch: up to
    the original length they are fixed, and beyond it one row's length changes what the others compute.
    """
    longest = config.model_config.max_model_len or model.max_position_embeddings
    fixed = model.rope_fixed_length
    return fixed is not None and (longest is None or longest > fixed)


def transformers_since(config: EngineConfig, model: ModelInfo) -> str | None:
    """The first version of transformers whose code computes the model as it is served; None where that of all
    supported ones does, or of none."""
    is_generated = resolved_runner_type(config, model) == "generate"
    return (CAUSAL_FROM.get(model.model_type or "") if is_generated else None) or model.transformers_since


def needs_newer_transformers(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether the installed transformers is older than `transformers_since`; None: not known.

    A causal language model whose own code is trusted does not need the type.
    """
    since = transformers_since(config, model)
    if since is None or _brings_causal_lm(config, model):
        return False
    return older_transformers(environment, since)


_VISION_PACKAGES: Mapping[str, str] = {"Gemma3nForConditionalGeneration": "timm"}
"""Architecture → the package that transformers makes the model's vision tower of."""


def lacks_vision_package(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether the package that transformers makes the model's vision tower of isn't installed; None: not
    known."""
    if _brings_causal_lm(config, model):
        return False
    needed = [_VISION_PACKAGES[name] for name in model.architectures if name in _VISION_PACKAGES]
    found = [environment.version(package) for package in needed]
    if None in found:
        return True
    return None if UNKNOWN in found else False


def is_row_by_row(config: EngineConfig, model: ModelInfo, environment: Environment) -> bool | None:
    """Whether V1 computes the model's requests one by one: by its type, or since it outgrows its RoPE, whose
    frequencies don't follow each row's length. None: it depends on the version of transformers, which isn't
    known."""
    if resolved_runner_type(config, model) == "pooling":
        sees_padding = pooling_task(config, model) in POOLED_ALONE.get(model.model_type or "", ())
        return sees_padding or outgrows_rope(config, model)
    if model.model_type in PACKED_FROM:
        return older_transformers(environment, PACKED_FROM[model.model_type])
    listed = model.model_type in ROW_BY_ROW or not set(ROW_BY_ROW_WRAPPERS).isdisjoint(model.architectures)
    return listed or (outgrows_rope(config, model) and model.rope_type != "dynamic")


def prompt_steps(config: EngineConfig, model: ModelInfo) -> str | None:
    """In how many steps a pooling runner may have to compute a prompt, one of `PROMPT_STEPS`; None where the
    model is not for pooling.

    "several": prompts may have more than `max_num_batched_tokens` tokens, and the model is a decoder, which
    can go on where a chunk ended. "too_long": the same, and it can't: it sees later tokens, keeps more than
    keys and values, or its rotary frequencies change with a prompt's length.
    """
    if resolved_runner_type(config, model) != "pooling":
        return None
    most, longest = config.scheduler_config.max_num_batched_tokens, _longest_prompt(config, model)
    fits = most is None or longest is None or most >= longest
    if fits or not has_pooling_model(config, model):
        return "one"
    is_encoder = model.is_masked_lm and model.raw.get("is_decoder") is not True
    sees_all = {"is_causal", "use_bidirectional_attention"} & set(model.math_modifiers)
    keeps_more = model.has_inner_state or model.model_type in (*POOLED_ALONE, *ROW_BY_ROW, *POOLED_WHOLE)
    changes = is_encoder or sees_all or keeps_more or outgrows_rope(config, model)
    decodes = model.is_causal_lm and not changes
    return "several" if decodes else "too_long"


def _longest_prompt(config: EngineConfig, model: ModelInfo) -> int | None:
    configured, possible = config.model_config.max_model_len, model.max_position_embeddings
    if configured is not None or not model.modules:
        return configured or possible
    files = read_sentence_transformers(Path(model.file).parent)
    least = (files.max_seq_length if files else None, possible)
    return min((length for length in least if length is not None), default=None)


def has_causal_lm(config: EngineConfig, model: ModelInfo) -> bool:
    """Whether transformers has a causal language model of this type, or trusted code comes with the model.

    Of BERT's kin only where config.json has `is_decoder`: else each token sees those after it.
    """
    is_encoder = model.model_type in DECODERS_BY_FLAG and model.raw.get("is_decoder") is not True
    return (model.is_causal_lm and not is_encoder) or _brings_causal_lm(config, model)


def _brings_causal_lm(config: EngineConfig, model: ModelInfo) -> bool:
    auto_map = model.raw.get("auto_map")
    brings_one = isinstance(auto_map, Mapping) and "AutoModelForCausalLM" in auto_map
    return brings_one and config.model_config.trust_remote_code


def older_transformers(environment: Environment, since: str) -> bool | None:
    """Whether transformers is older than a version, or not there; None: not known."""
    installed = environment.version("transformers")
    if installed is UNKNOWN:
        return None
    return installed is None or release(str(installed)) < release(since)
