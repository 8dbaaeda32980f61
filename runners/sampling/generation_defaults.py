"""Default sampling parameters and end-of-sequence tokens, from a model's generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.printable import printable, short
from dodona.oracle.systems.own.companions import named_generation_config
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.params import SamplingParams

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig

logger = logging.getLogger("dodona.engine")


def _as_given(value: Any) -> Any:
    return value


def _whole(value: Any) -> Any:
    """A whole number that is written with a point, as transformers takes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _share(value: Any) -> Any:
    """A share of the probability: at 0 transformers keeps the most probable token, as any tiny share does."""
    return 1e-6 if value == 0 and not isinstance(value, bool) else value


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", _as_given),
    "top_p": ("top_p", _share),
    "top_k": ("top_k", _whole),
    "min_p": ("min_p", _as_given),
    "repetition_penalty": ("repetition_penalty", _as_given),
    "max_new_tokens": ("max_tokens", _whole),
}
"""generation_config.json's name → the sampling parameter's, and how a value is taken. What
`SamplingParams` refuses then is refused."""

_IGNORED: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "stop_strings": ([],),
    "max_time": (),
    "num_return_sequences": (1,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ({},),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "renormalize_logits": (False,),
    "watermarking_config": (),
}
"""Fields of transformers that change its sampling and have no effect here, with the values (besides null)
that change nothing there: others are named in a warning."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling parameters where a caller gives none, and the tokens that end a sequence."""

    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: frozenset[int] = frozenset()

    @classmethod
    def load(cls, config: EngineConfig, model_dir: Path, model_eos: Iterable[int]) -> GenerationDefaults:
        """Read generation_config.json as `generation_config` says: "auto" (the model's), "vllm" (none), a
        directory.

        `model_eos` are config.json's EOS tokens, which count too. Raises ConfigError that names file and
        field.
        """
        setting = config.model_config.generation_config
        if setting == "vllm":
            return cls(eos_token_ids=frozenset(model_eos))
        file = named_generation_config(config) or model_dir / "generation_config.json"
        if not file.exists():
            return cls(eos_token_ids=frozenset(model_eos))
        values = read_json(file)
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected an object, got {type(values).__name__}")
        given = {
            name: take(values[key]) for key, (name, take) in _FIELDS.items() if values.get(key) is not None
        }
        _warn_of_ignored(file, values)
        try:
            params = SamplingParams(**given)
        except InvalidRequestError as error:
            raise ConfigError(
                f"{file}: {error}; mend it, or ignore it with generation_config='vllm'"
            ) from error
        return cls(params, frozenset(model_eos) | _eos(file, values.get("eos_token_id")))


def _warn_of_ignored(file: Path, values: Mapping[str, Any]) -> None:
    ignored = [
        f"{name}={short(values[name])}"
        for name, neutral in _IGNORED.items()
        if values.get(name) is not None and values[name] not in neutral
    ]
    if ignored:
        logger.warning("%s: no effect here: %s", printable(file), ", ".join(ignored))


def _eos(file: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ConfigError(f"{file}: eos_token_id must be a token id or a list of them, got {short(value)}")
    return frozenset(ids)
