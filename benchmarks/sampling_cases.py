"""The sampler's kernels, and the sampler with each of its stages, at a batch and vocabulary; see
`benchmarks.kernel_cases`.

The least bytes of a kernel are one pass over the logits (two where it writes them); those of the sampler are
one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.kernel_cases import Case, Inputs, Scene
from dodona.kernels.sampling.filters import filter_cuts, filter_cuts_reference
from dodona.kernels.sampling.gumbel import gumbel_sample, gumbel_sample_reference
from dodona.kernels.sampling.logprobs import token_logprobs
from dodona.kernels.sampling.masks import prepare_scores, prepare_scores_reference
from dodona.kernels.sampling.penalties import apply_penalties, apply_penalties_reference
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.sampling.stage import SamplingBatch, Stage
from dodona.runners.device.sampling.stages import STAGES
from dodona.runners.interface import GrammarOutput, NewRequest
from dodona.runners.sampling import reference
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import SamplingRow

TEMPERATURE = 0.6

FILTERS: Mapping[str, tuple[float, int, float]] = {
    # name: (min_p, top_k, top_p)
    "top_k 50": (0.0, 50, 1.0),
    "top_p 0.9": (0.0, 0, 0.9),
    "top_k 50 top_p 0.9": (0.0, 50, 0.9),
    "min_p 0.05": (0.05, 0, 1.0),
}


def sampling_cases(scene: Scene, vocab: int, batches: Sequence[int]) -> Iterator[Case]:
    """Every kernel and stage at each batch."""
    for batch in batches:
        yield from _stages(scene, vocab, batch)
        yield from _draw(scene, vocab, batch)
        yield from _filters(scene, vocab, batch)
        yield from _logprobs(scene, vocab, batch)
        yield from _edits(scene, vocab, batch)


def _logits(scene: Scene, batch: int, vocab: int) -> torch.Tensor:
    # About as wide as a trained model's: top-p then keeps tens to hundreds of tokens.
    return scene.random(batch, vocab) * 3


def _column(scene: Scene, batch: int, value: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((batch,), value, dtype=dtype, device=scene.device)


def _stages(scene: Scene, vocab: int, batch: int) -> Iterator[Case]:
    """V2's sampler for rows that all ask for one stage."""
    for stage in STAGES:

        def make(stage: type[Stage] = stage) -> Inputs:
            logits = _logits(scene, batch, vocab)
            params = SamplingParams(temperature=TEMPERATURE, max_tokens=None, **stage.example.params)
            prompt, allowed = (1, 2, 3), np.full((batch, -(-vocab // 32)), 0x5A5A5A5A, dtype=np.int32)
            history = torch.zeros(batch, 8, dtype=torch.int32, device=scene.device)
            history[:, :3] = scene.ints(prompt)
            sampler = DeviceSampler(max_num_seqs=batch, vocab_size=vocab, token_ids=history)
            for row in range(batch):
                sampler.add_request(
                    NewRequest(
                        str(row),
                        row,
                        prompt,
                        len(prompt),
                        0,
                        (),
                        params,
                        row,
                        stage.example.stop_token_ids,
                        stage.example.bad_words_token_ids,
                    )
                )
            sampler.apply_staged_writes()
            has_grammar = params.structured_outputs is not None
            sampling = SamplingBatch(
                range(batch),
                scene.ints(torch.arange(batch)),
                scene.ints([len(prompt)] * batch),
                GrammarOutput(range(batch), allowed) if has_grammar else None,
            )

            def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
                rows = [
                    SamplingRow(
                        params,
                        prompt,
                        (),
                        row,
                        stage.example.stop_token_ids,
                        stage.example.bad_words_token_ids,
                        allowed[row] if has_grammar else None,
                    )
                    for row in range(batch)
                ]
                tokens = sampler.sample(logits, sampling).token_ids
                return [(tokens, scene.ints(reference.sample(logits, rows).token_ids))]

            return Inputs(lambda: sampler.sample(logits, sampling), None, verify)

        size = batch * vocab * scene.dtype.itemsize
        yield Case("DeviceSampler.sample", f"{stage.name} {batch} × {vocab}", size, 0, make)


def _draw(scene: Scene, vocab: int, batch: int) -> Iterator[Case]:
    def make() -> Inputs:
        logits = _logits(scene, batch, vocab)
        arguments: dict[str, Any] = {
            "idx_mapping": scene.ints(torch.arange(batch)),
            "positions": scene.ints([100] * batch),
            "seeds": torch.arange(batch, device=scene.device),
            "inverse_temperatures": _column(scene, batch, 1 / TEMPERATURE, torch.float32),
            "fallback": _column(scene, batch, 0, torch.int64),
        }

        def in_torch() -> torch.Tensor:
            probabilities = torch.softmax(logits.float() / TEMPERATURE, dim=-1)
            return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)

        return Inputs(
            lambda: gumbel_sample(logits, **arguments),
            in_torch,
            lambda: [
                (gumbel_sample(logits, **arguments), gumbel_sample_reference(logits, **arguments).int())
            ],
        )

    size = batch * vocab * scene.dtype.itemsize
    yield Case("gumbel_sample", f"{batch} × {vocab}", size, 0, make)


def _filters(scene: Scene, vocab: int, batch: int) -> Iterator[Case]:
    for name, (min_p, top_k, top_p) in FILTERS.items():

        def make(min_p: float = min_p, top_k: int = top_k, top_p: float = top_p) -> Inputs:
            logits = _logits(scene, batch, vocab)
            arguments: dict[str, Any] = {
                "idx_mapping": scene.ints(torch.arange(batch)),
                "inverse_temperatures": _column(scene, batch, 1 / TEMPERATURE, torch.float32),
                "log_min_p": _column(scene, batch, math.log(min_p) if min_p else -math.inf, torch.float32),
                "top_k": _column(scene, batch, top_k, torch.int64),
                "top_p": _column(scene, batch, top_p, torch.float32),
            }

            def kept(cuts: torch.Tensor) -> torch.Tensor:
                return logits.float() / TEMPERATURE >= cuts[:, None] * (1 - 1e-6)

            def in_torch() -> torch.Tensor:
                tempered = logits.float() / TEMPERATURE
                if min_p:
                    return tempered.amax(dim=-1) + math.log(min_p)
                if top_p == 1.0:
                    return tempered.topk(top_k, dim=-1).values[:, -1]
                ordered = tempered.sort(dim=-1, descending=True).values
                if top_k:
                    ordered = ordered[:, :top_k]
                below = torch.softmax(ordered, dim=-1).cumsum(dim=-1) < top_p
                return ordered.gather(1, below.sum(dim=-1, keepdim=True).clamp(max=ordered.shape[1] - 1))

            return Inputs(
                lambda: filter_cuts(logits, **arguments),
                in_torch,
                lambda: [
                    (
                        kept(filter_cuts(logits, **arguments)),
                        kept(filter_cuts_reference(logits, **arguments)),
                    )
                ],
            )

        size = batch * vocab * scene.dtype.itemsize
        yield Case("filter_cuts", f"{name} {batch} × {vocab}", size, 0, make)


def _logprobs(scene: Scene, vocab: int, batch: int) -> Iterator[Case]:
    for top_n in (1, 20):

        def make(top_n: int = top_n) -> Inputs:
            logits = _logits(scene, batch, vocab)
            chosen = torch.randint(vocab, (batch,), device=scene.device)

            def in_torch() -> tuple[torch.Tensor, ...]:
                scores = torch.log_softmax(logits.float(), dim=-1)
                mine = scores.gather(1, chosen[:, None])
                return mine, (scores > mine).sum(dim=-1), *scores.topk(top_n, dim=-1)

            def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
                found, (mine, above, best, _) = token_logprobs(logits, chosen, top_n=top_n), in_torch()
                return [
                    (found.logprobs[:, :1], mine),
                    (found.logprobs[:, 1:], best),
                    (found.ranks, above.int() + 1),
                ]

            return Inputs(lambda: token_logprobs(logits, chosen, top_n=top_n), in_torch, verify)

        size = batch * vocab * scene.dtype.itemsize
        yield Case("token_logprobs", f"top {top_n} {batch} × {vocab}", size, 0, make)


def _edits(scene: Scene, vocab: int, batch: int) -> Iterator[Case]:
    words = -(-vocab // 32)

    def make_copy() -> Inputs:
        logits, mapping = _logits(scene, batch, vocab), scene.ints(torch.arange(batch))
        return Inputs(
            lambda: prepare_scores(logits, idx_mapping=mapping),
            lambda: logits.float(),
            lambda: [
                (
                    prepare_scores(logits, idx_mapping=mapping),
                    prepare_scores_reference(logits, idx_mapping=mapping),
                )
            ],
        )

    def make_penalties() -> Inputs:
        scores = _logits(scene, batch, vocab).float()
        arguments: dict[str, Any] = {
            "idx_mapping": scene.ints(torch.arange(batch)),
            "is_penalized": _column(scene, batch, 1, torch.int64),
            "repetition": _column(scene, batch, 1.1, torch.float32),
            "frequency": _column(scene, batch, 0.3, torch.float32),
            "presence": _column(scene, batch, 0.5, torch.float32),
            "prompt_bits": torch.randint(2**31 - 1, (batch, words), dtype=torch.int32, device=scene.device),
            "output_counts": torch.randint(3, (batch, vocab), dtype=torch.int16, device=scene.device),
        }

        def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
            mine, expected = scores.clone(), scores.clone()
            apply_penalties(mine, **arguments)
            apply_penalties_reference(expected, **arguments)
            return [(mine, expected)]

        return Inputs(
            lambda: apply_penalties(scores, **arguments),
            lambda: apply_penalties_reference(scores, **arguments),
            verify,
        )

    item = scene.dtype.itemsize
    yield Case("prepare_scores", f"{batch} × {vocab}", batch * vocab * (item + 4), 0, make_copy)
    size = batch * (vocab * (4 + 4 + 2) + words * 4)
    yield Case("apply_penalties", f"{batch} × {vocab}", size, 0, make_penalties)
