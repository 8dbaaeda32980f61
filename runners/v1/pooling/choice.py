"""Chooses at load how a pooling model computes several prompts: batched with padding, or one by one.

Two random prompts and a short one are computed together, and each alone by transformers' plain attention. A
model that sees padding, finds its last token in another way, or mixes the sequences of a batch differs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.quantization.replacement import unrounded_inputs
from dodona.runners.third_party import first_line
from dodona.runners.v1.packed_model import PLAIN_ATTENTION, set_attention
from dodona.runners.v1.pooling.model import TransformersPoolingModel
from dodona.runners.v1.self_check import configured_windows, tolerance_of

logger = logging.getLogger("dodona.engine")

_LONGEST_PROMPT = 320
_FEW_TOKENS = 4
_SEED = 0x0D0D0A


@dataclass(frozen=True, slots=True)
class CheckedPoolingModel:
    """A model that computes prompts as transformers' plain one does."""

    model: TransformersPoolingModel
    difference: float
    """The relative difference found."""
    why_alone: str | None = None
    """Why prompts are computed one by one; None where they are batched."""


def choose(
    module: torch.nn.Module, *, max_model_len: int, rope_changes_beyond: int | None = None
) -> CheckedPoolingModel:
    """The fastest way that passes the check.

    rope_changes_beyond: the length beyond which rotary frequencies are others, where prompts may grow beyond
    it; then the longest prompt of a batch would change the others.

    Raises UnsupportedConfiguration with what the model does where it can't compute a prompt, or where it
    differs from itself.
    """
    with unrounded_inputs(module):
        return _choose(module, max_model_len, rope_changes_beyond)


def try_prompt(module: torch.nn.Module) -> torch.Tensor:
    """The module's output of a few tokens, with each attention that `choose` may take.

    Raises UnsupportedConfiguration where it can't compute them.
    """
    alone = TransformersPoolingModel(module, pads=False)
    prompt = [TokenSequence([min(1, alone.vocab_size - 1)] * _FEW_TOKENS)]
    for implementation in dict.fromkeys((_implementation(module), PLAIN_ATTENTION)):
        output = _outputs(alone, implementation, prompt)[0]
    return output


def _outputs(
    model: TransformersPoolingModel, implementation: str, prompts: list[TokenSequence]
) -> list[torch.Tensor]:
    """The output of each prompt alone, with an implementation of attention."""
    set_attention(model.module, implementation)
    try:
        return [model.compute([prompt])[0] for prompt in prompts]
    except Exception as error:
        raise _refusal(model, f"it does not compute a prompt: {first_line(error)}") from error


def _choose(
    module: torch.nn.Module, max_model_len: int, rope_changes_beyond: int | None
) -> CheckedPoolingModel:
    alone = TransformersPoolingModel(module, pads=False)
    chosen = _implementation(module)
    prompts = _prompts(alone, max_model_len)
    plain = _outputs(alone, PLAIN_ATTENTION, prompts)
    tolerance = tolerance_of(module, alone.dtype)
    # SDPA does not compute all that a model asks of it: Doge's on transformers 5.17 leaves out a mask.
    for implementation in dict.fromkeys((chosen, PLAIN_ATTENTION)):
        found = _largest(plain, _outputs(alone, implementation, prompts))
        if found <= tolerance:
            break
    if not found <= tolerance:
        raise _refusal(alone, f"it differs from itself by {found:.2g} (limit {tolerance:g})")
    batched = TransformersPoolingModel(module, pads=True)
    if rope_changes_beyond is not None:
        why = f"its rotary frequencies change beyond {rope_changes_beyond} tokens"
    elif not batched.takes_padding:
        why = "it takes no attention_mask"
    else:
        try:
            difference = _largest(plain, batched.compute(prompts))
            if difference <= tolerance:
                return CheckedPoolingModel(batched, difference)
            why = f"in a padded batch it differs by {difference:.2g} (limit {tolerance:g})"
        except Exception as error:
            why = f"it does not compute a batch: {first_line(error)}"
    logger.warning("%s is slow: each prompt is computed on its own, because %s.", alone.name, why)
    return CheckedPoolingModel(alone, found, why)


def _prompts(model: TransformersPoolingModel, max_model_len: int) -> list[TokenSequence]:
    """Longer than twice the largest window that fits, two thirds of that, and three tokens."""
    longest = min(_LONGEST_PROMPT, max_model_len)
    feasible = [w for w in configured_windows(model.module) if 2 * w + 3 <= longest]
    length = min(longest, max(2 * max(feasible) + 3 if feasible else 0, 24))
    generator = torch.Generator().manual_seed(_SEED)
    sizes = (length, max(1, 2 * length // 3), min(3, length))
    # Without the first ids, among which are those of padding and masks.
    low = min(8, model.vocab_size - 1)
    return [
        TokenSequence(torch.randint(low, model.vocab_size, (n,), generator=generator).tolist()) for n in sizes
    ]


def _implementation(module: torch.nn.Module) -> str:
    """The attention that the module was made with; the plain one where scores are capped, which SDPA leaves
    out: transformers 5.17 makes such modules with it all the same."""
    config: Any = module.config
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    made: str | None = config._attn_implementation
    return PLAIN_ATTENTION if capped or made is None else made


def _largest(plain: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest root mean square of a difference over the spread of all plain outputs; infinite where one
    is NaN."""
    spread = torch.cat([output.float().flatten() for output in plain])
    scale = max(float((spread - spread.mean()).square().mean().sqrt()), 1e-20)
    worst = 0.0
    for one, other in zip(plain, others, strict=True):
        if one.shape != other.shape:
            return math.inf
        difference = float((one.float() - other.float()).square().mean().sqrt()) / scale
        worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst


def _refusal(model: TransformersPoolingModel, what: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking(
        "v1", "architecture", why=f"self-check of {model.name} at load: {what}"
    )
