"""Default sampling parameters and end-of-sequence tokens, from a model's generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dodona.oracle.printable import printable, short
from dodona.oracle.systems.own.companions import generation_config
from dodona.runners.sampling.params import SamplingParams

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig

logger = logging.getLogger("dodona.engine")


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
        found = generation_config(config, model_dir)
        if found is None:
            return cls(eos_token_ids=frozenset(model_eos))
        _warn_of_ignored(found.file, found.raw)
        return cls(SamplingParams(**found.sampling), frozenset(model_eos) | found.eos_token_ids)


def _warn_of_ignored(file: Path, values: Mapping[str, Any]) -> None:
    ignored = [
        f"{name}={short(values[name])}"
        for name, neutral in _IGNORED.items()
        if values.get(name) is not None and values[name] not in neutral
    ]
    if ignored:
        logger.warning("%s: no effect here: %s", printable(file), ", ".join(ignored))
