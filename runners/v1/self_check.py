"""Self-check at load: V1's steps must compute the same logits as the plain model.

A model that accepts our attention may still keep state between steps, share keys and values between layers,
derive positions from lengths, or mask in its own way. So two random prompts are run three ways: by
transformers without a cache, by transformers with its own cache, and through packed, paged steps, in which
one row is chunked while the other starts and both then decode side by side. All logits must agree.

This proves that chunked prefill, packing, block tables, decode, positions and masks are right for these
weights on this device, up to the prompts' length. Other checks cover longer sequences: `patterns.recognise`
evaluates the model's mask functions, for windows; `WatchedCache` notes at any length where a model asks for
other states (an indexer's keys, compressed keys); rows whose rotary embedding changes with length are not
packed.

A model that computes its rows one by one goes through the same steps, with chunks and with two rows in turn.
Activations that a quantized model rounds are compared as they are before that (`unrounded_inputs`).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import ALONE, Group
from dodona.runners.quantization.library import has_library_layers
from dodona.runners.quantization.replacement import rounds_inputs, unrounded_inputs
from dodona.runners.third_party import first_line
from dodona.runners.v1.mixers import STATE_API, cache_argument, has_mixers
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.positions import first_position
from dodona.runners.v1.row_model import RowModel
from dodona.runners.v1.served_model import ServedModel
from dodona.runners.v1.state_slots import StateSlots
from dodona.runners.v1.step_layout import StepLayout, to_device
from dodona.runners.v1.watched_cache import WatchedCache, unusual_uses

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest accepted root-mean-square difference, relative to the spread of the plain model's logits."""

ROUNDED_TOLERANCE = 2e-2
"""The least tolerance where activations are rounded while two ways are compared: the noise of another order
of summation moves some of them by a whole step."""

LIBRARY_TOLERANCE = 5e-2
"""The same for layers of bitsandbytes and torchao: they round in half precision, and some depending on the
other tokens of a step."""

_BLOCK_SIZE = 4
_LONGEST_PROMPT = 128
_MOST_WINDOWS = 8
_SEED = 0x0D0D0A


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The relative differences found, each at most `tolerance`."""

    paged: float
    """Between the steps and the plain model without a cache."""
    plain_cached: float
    """Between the plain model with and without its cache: the noise of rounding; row by row, `paged`."""
    tolerance: float
    prompt_lengths: tuple[int, int]


def self_check(model: PackedModel, *, max_model_len: int, pipeline: Group = ALONE.pipeline) -> SelfCheck:
    """Run the check. Raises UnsupportedConfiguration with the differences where they exceed the tolerance.

    pipeline: the ranks that hold the other layers; they check together.
    """
    prompts = _prompts(model, _windows_of_stages(model, pipeline), max_model_len)
    # Code that is compiled without rounding would be compiled once more with it.
    with nullcontext() if model.is_compiled else unrounded_inputs(model.model):
        return _compare(model, prompts)


def _compare(model: PackedModel, prompts: list[torch.Tensor]) -> SelfCheck:
    try:
        plain = [plain_logits(model, prompt) for prompt in prompts]
        cached = [_cached_logits(model, prompt) for prompt in prompts]
        paged = _step_logits(model, prompts)
    except UnsupportedConfiguration:
        raise
    except Exception as error:
        raise _refusal(model, f"it failed with {type(error).__name__}: {error}") from error

    tolerance = tolerance_of(model.model, model.kv_dtype)
    noise = max(difference(a, b) for a, b in zip(plain, cached, strict=True))
    found = max(difference(a, b) for a, b in zip(plain, paged, strict=True))
    if not noise <= tolerance:
        raise _refusal(
            model, f"the plain model differs from itself with a cache by {noise:.2g} (limit {tolerance:g})"
        )
    if not found <= tolerance:
        raise _refusal(
            model, f"the paged path differs from the plain model by {found:.2g} (limit {tolerance:g})"
        )
    return SelfCheck(found, noise, tolerance, (len(prompts[0]), len(prompts[1])))


def self_check_rows(model: RowModel, *, max_model_len: int) -> SelfCheck:
    """Run the check for a model that computes its rows one by one. Raises as `self_check` does."""
    prompts = _prompts(model, configured_windows(model.model), max_model_len)
    with unrounded_inputs(model.model):
        return _compare_rows(model, prompts)


def _compare_rows(model: RowModel, prompts: list[torch.Tensor]) -> SelfCheck:
    try:
        plain = [plain_logits(model, prompt) for prompt in prompts]
        stepped = _step_logits(model, prompts)
    except UnsupportedConfiguration:
        raise
    except Exception as error:
        raise _refusal(model, f"row by row it failed with {first_line(error)}") from error
    tolerance = tolerance_of(model.model, model.kv_dtype)
    found = max(difference(a, b) for a, b in zip(plain, stepped, strict=True))
    if not found <= tolerance:
        how = "computed again for each token" if model.continuation == "none" else "with its own cache"
        raise _refusal(
            model, f"{how}, it differs from one pass over all tokens by {found:.2g} (limit {tolerance:g})"
        )
    return SelfCheck(found, found, tolerance, (len(prompts[0]), len(prompts[1])))


def tolerance_of(module: torch.nn.Module, dtype: torch.dtype) -> float:
    """Largest accepted difference, see `TOLERANCE`, `ROUNDED_TOLERANCE` and `LIBRARY_TOLERANCE`."""
    tolerance = TOLERANCE[dtype]
    if has_library_layers(module):
        return max(tolerance, LIBRARY_TOLERANCE)
    if rounds_inputs(module):
        return max(tolerance, ROUNDED_TOLERANCE)
    return tolerance


def configured_windows(model: Any) -> list[int]:
    """Sizes of windows and chunks of attention that the model's configurations name."""
    named = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    # Layers may differ in a field; then the whole model's configuration has none.
    configs = [
        config
        for whole in named.values()
        for config in (whole.per_layer_config if getattr(whole, "is_heterogeneous", False) else [whole])
    ]
    found = [getattr(config, name, None) for config in configs for name in ("sliding_window", "window_size")]
    return [size for size in found if isinstance(size, int)]


def _windows_of_stages(model: PackedModel, pipeline: Group) -> list[int]:
    """The windows of all stages' layers: prompts must be as long on each."""
    own = {call.pattern.size for call in model.calls}
    if pipeline.size == 1:
        return sorted(own)
    # Stages have few different windows.
    table = torch.zeros(_MOST_WINDOWS, dtype=torch.int64, device=model.device)
    values = sorted(own)[:_MOST_WINDOWS]
    table[: len(values)] = torch.tensor(values, device=model.device)
    return sorted({int(size) for each in pipeline.all_gather(table) for size in each.tolist()})


def _prompts(model: ServedModel, windows: list[int], max_model_len: int) -> list[torch.Tensor]:
    """Two random prompts; longer than twice the largest window that the limits allow."""
    longest = min(_LONGEST_PROMPT, max_model_len)
    feasible = [w for w in windows if w and 2 * w + 3 <= longest]
    length = min(longest, max(2 * max(feasible) + 3 if feasible else 0, 21))
    generator = torch.Generator().manual_seed(_SEED)
    prompts = [
        torch.randint(0, model.vocab_size, (n,), generator=generator) for n in (length, max(1, length - 5))
    ]
    # A model that gives padding a position of its own would number these prompts in another way.
    padding = first_position(model.model) - 1
    return [torch.where(prompt == padding, (padding + 1) % model.vocab_size, prompt) for prompt in prompts]


def plain_logits(model: ServedModel, prompt: torch.Tensor) -> torch.Tensor:
    """[n, vocab] fp32 on the host, by transformers without a cache."""
    with torch.inference_mode(), model.plain() as plain:
        logits: torch.Tensor = plain(input_ids=prompt.to(model.device)[None], use_cache=False).logits[0]
        return logits.float().cpu()


def _cached_logits(model: PackedModel, prompt: torch.Tensor) -> torch.Tensor:
    """The same with transformers' cache: the first half in one pass, then token by token.

    Raises UnsupportedConfiguration where the model puts more than attention's keys and values into the cache.
    """
    ids = prompt.to(model.device)[None]
    positions = torch.arange(len(prompt), device=model.device)[None] + first_position(model.model)
    half = len(prompt) // 2
    parts = [*([slice(0, half)] if half else []), *(slice(i, i + 1) for i in range(half, len(prompt)))]
    cache = WatchedCache(model.text_config)
    argument = cache_argument(model.model.forward)
    logits = []
    with torch.inference_mode(), model.plain() as plain:
        for part in parts:
            cache.begin_pass()
            arguments = {argument: cache, "use_cache": True}
            if model.takes_positions:
                arguments["position_ids"] = positions[:, part]
            logits.append(plain(input_ids=ids[:, part], **arguments).logits[0])
    # Of a pipeline's stages, some may have no mixer.
    states = STATE_API if has_mixers(model.text_config) else frozenset()
    found = set(unusual_uses(cache)) - states
    if found:
        raise _refusal(
            model,
            f"its layers use more of a cache than attention's keys and values: {', '.join(sorted(found))}",
        )
    return torch.cat(logits).float().cpu()


def _step_logits(model: ServedModel, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same logits through steps of one or two rows over interleaved blocks."""
    long, short = len(prompts[0]), len(prompts[1])
    blocks = -(-max(long, short) // _BLOCK_SIZE)
    cache, slots = model.make_cache(2 * blocks, _BLOCK_SIZE), model.make_state_slots(2)
    tables = np.arange(2 * blocks).reshape(blocks, 2).T[:, ::-1]
    done = [0, 0]
    logits: list[list[torch.Tensor]] = [[], []]
    first = long // 3
    # (tokens of the first row, tokens of the second row) per step, cut to what is left of each.
    plan = [(first, 0), (long - first - 3, short // 2), (1, short - short // 2 - 2), (1, 1), (long, short)]
    for wanted in plan:
        counts = [min(w, n - d) for w, n, d in zip(wanted, (long, short), done, strict=True)]
        rows = [r for r in (0, 1) if counts[r] > 0]
        if rows:
            for row, part in zip(
                rows, _step(model, cache, slots, prompts, tables, rows, done, counts), strict=True
            ):
                logits[row].append(part)
                done[row] += counts[row]
    return [torch.cat(parts) for parts in logits]


def _step(
    model: ServedModel,
    cache: Any,
    slots: StateSlots,
    prompts: list[torch.Tensor],
    tables: np.ndarray,
    rows: list[int],
    done: list[int],
    counts: list[int],
) -> tuple[torch.Tensor, ...]:
    num_tokens = [counts[r] for r in rows]
    num_computed = [done[r] for r in rows]
    layout = StepLayout(num_tokens, num_computed, tables[rows], _BLOCK_SIZE, model.device, rows)
    states = slots.step(rows, num_tokens, num_computed)
    ids = torch.cat([prompts[r][done[r] : done[r] + counts[r]] for r in rows]).to(model.device)
    everything = to_device(np.arange(layout.total_tokens), model.device)
    return torch.split(model.forward(ids, layout, cache, everything, states).float().cpu(), num_tokens)


def difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference over the spread of the reference; infinite where one is NaN."""
    # Models that forbid tokens give them the least number there is; it would make any spread huge.
    allowed = reference > -1e30
    if reference.shape != other.shape or not torch.equal(allowed, other > -1e30) or not allowed.any():
        return float("inf")
    kept, difference = reference[allowed], (reference - other)[allowed]
    scale = (kept - kept.mean()).square().mean().sqrt().item()
    found = difference.square().mean().sqrt().item() / max(scale, 1e-20)
    return found if math.isfinite(found) else float("inf")


def _refusal(model: ServedModel, what: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking(
        "v1", "architecture", why=f"self-check of {model.name} at load: {what}"
    )
