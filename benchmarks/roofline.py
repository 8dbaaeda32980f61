"""The least time that a workload could take, from the model's shape and two measured rates of the GPU.

A step over some rows must at least

- read every weight of the layers and of the output projection once: `step_weight_bytes` (the embedding's rows
  are looked up, and count only where the table is the output projection too). Of E experts with k per token,
  a step over n tokens is taken to read E (1 - (1 - k/E)^n): as many as differ if tokens choose at random;
- read each row's keys and values up to and with its own position: context * `kv_bytes_per_token` (at most
  the sliding window), and write those of its new tokens;
- do 2 floating-point operations per weight and token, and 4 * layers * query heads * head size for each pair
  of query and key that it sees. The output projection counts for tokens that are sampled from only.

Its time is the larger of bytes / bandwidth and operations / rate. A workload's least time is the sum over an
ideal schedule: `max_num_seqs` rows at most; prompts are computed in steps of `max_num_batched_tokens` tokens,
whose number is the least possible; then each decode step holds every row that is not finished, and a row that
ends makes room for the next. Prefill and decode steps are counted apart. So an engine that mixes them may in
principle come below this (compute of the one beside reads of the other), yet none comes near that.

Activations, launches and sampling are taken for free: they are what an engine adds.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rates:
    """What a GPU was measured to do."""

    bandwidth: float
    """Bytes per second."""
    flops: float
    """Operations per second of a large bf16 matrix product."""

    @classmethod
    def of(cls, gpu: str, *, bandwidth: float | None = None, flops: float | None = None) -> Rates:
        """Those of a GPU, by torch's name for it, but for what is given. One that was not measured has an
        H200's."""
        known = next((rates for name, rates in MEASURED.items() if name in gpu), MEASURED["H200"])
        return cls(bandwidth or known.bandwidth, flops or known.flops)


MEASURED: Mapping[str, Rates] = {
    "H200": Rates(4.28e12, 790e12),  # a large device-to-device copy, bytes read plus bytes written
    "H100": Rates(3.1e12, 790e12),  # a large sum, bytes read
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of config.json decides bytes and operations, for decoders with a gated MLP, or with gated experts
    and a router in every layer."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    sliding_window: int | None
    dtype_bytes: int
    num_experts: int = 0
    """Experts of a layer, each of `intermediate_size`; 0 for a dense MLP."""
    experts_per_token: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], dtype_bytes: int) -> Shape:
        """From config.json's content. Raises ValueError for models of another build (layers without experts
        beside layers with them, shared experts, inner states)."""
        if config.get("quantization_config"):
            raise ValueError(
                "the roofline counts weights of the model's type, and config.json quantizes them"
            )
        if "mamba_d_state" in config:
            raise ValueError("the roofline knows no layers with an inner state")
        experts = config.get("num_experts") or config.get("num_local_experts") or 0
        dense = config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers")
        if experts and (dense or config.get("shared_expert_intermediate_size")):
            raise ValueError("the roofline knows no shared experts, and no dense layers beside experts")
        q_heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=(experts and config.get("moe_intermediate_size"))
            or config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_q_heads=q_heads,
            num_kv_heads=config.get("num_key_value_heads") or q_heads,
            head_size=config.get("head_dim") or config["hidden_size"] // q_heads,
            vocab_size=config["vocab_size"],
            sliding_window=config.get("sliding_window"),
            dtype_bytes=dtype_bytes,
            num_experts=experts,
            experts_per_token=config["num_experts_per_tok"] if experts else 0,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' projections that a token meets (norms are left out: they are few)."""
        return self.num_layers * (self._shared_weights + (self.experts_per_token or 1) * self._mlp_weights)

    @property
    def head_weights(self) -> int:
        """Weights of the output projection."""
        return self.hidden_size * self.vocab_size

    def step_weight_bytes(self, tokens: int) -> int:
        """Bytes of weights that a sampling step over so many tokens reads."""
        mlps = 1.0
        if self.num_experts:
            missed = (1 - self.experts_per_token / self.num_experts) ** tokens
            mlps = self.num_experts * (1 - missed)
        layers = self.num_layers * (self._shared_weights + round(mlps * self._mlp_weights))
        return (layers + self.head_weights) * self.dtype_bytes

    @property
    def _shared_weights(self) -> int:
        """Weights of a layer beside its MLPs: attention and router."""
        q, kv = self.num_q_heads * self.head_size, self.num_kv_heads * self.head_size
        return self.hidden_size * (q + 2 * kv) + q * self.hidden_size + self.hidden_size * self.num_experts

    @property
    def _mlp_weights(self) -> int:
        """Weights of one gated MLP."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token's keys and values over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.dtype_bytes

    @property
    def pair_flops(self) -> int:
        """Operations for one pair of query and key over all layers: scores, and their sum of values."""
        return 4 * self.num_layers * self.num_q_heads * self.head_size

    def seen(self, context: int) -> int:
        """Keys that a query at the end of `context` tokens (itself among them) sees."""
        return min(context, self.sliding_window) if self.sliding_window else context

    def pairs(self, tokens: int) -> int:
        """Pairs of query and key in a prompt of so many tokens."""
        window = self.sliding_window
        if not window or tokens <= window:
            return tokens * (tokens + 1) // 2
        return window * (window + 1) // 2 + (tokens - window) * window


@dataclass(frozen=True, slots=True)
class Roofline:
    """A workload's least time."""

    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    decode_bytes: int
    decode_flops: int
    prefill_bytes: int
    prefill_flops: int

    @property
    def seconds(self) -> float:
        """Least seconds, prefill and decode."""
        return self.prefill_seconds + self.decode_seconds


def workload_roofline(
    shape: Shape,
    lengths: Sequence[tuple[int, int]],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    rates: Rates = MEASURED["H200"],
) -> Roofline:
    """The least time for requests of (prompt tokens, output tokens) that are all there at the start.

    A request's first token is sampled in its last prefill step, so it decodes output - 1 times.
    """
    bandwidth, flops = rates.bandwidth, rates.flops
    prompt_tokens = sum(prompt for prompt, _ in lengths)
    steps = -(-prompt_tokens // max_num_batched_tokens)
    kv = shape.kv_bytes_per_token
    prefill_bytes = steps * shape.step_weight_bytes(-(-prompt_tokens // steps)) + prompt_tokens * kv
    prefill_flops = (
        2 * shape.layer_weights * prompt_tokens
        + 2 * shape.head_weights * len(lengths)
        + shape.pair_flops * sum(shape.pairs(prompt) for prompt, _ in lengths)
    )
    # Prefill steps are alike, so that the larger of the sums stands for the sum of the larger ones.
    prefill_seconds = max(prefill_bytes / bandwidth, prefill_flops / flops)

    decode_seconds, decode_steps, decode_bytes, decode_flops = 0.0, 0, 0, 0
    per_row_flops = 2 * (shape.layer_weights + shape.head_weights)
    for rows, seen in _decode_steps(shape, lengths, max_num_seqs):
        step_bytes = shape.step_weight_bytes(rows) + (seen + rows) * kv
        step_flops = rows * per_row_flops + seen * shape.pair_flops
        decode_seconds += max(step_bytes / bandwidth, step_flops / flops)
        decode_steps += 1
        decode_bytes += step_bytes
        decode_flops += step_flops
    return Roofline(
        prefill_seconds,
        decode_seconds,
        decode_steps,
        decode_bytes,
        decode_flops,
        prefill_bytes,
        prefill_flops,
    )


def _decode_steps(
    shape: Shape, lengths: Sequence[tuple[int, int]], max_num_seqs: int
) -> list[tuple[int, int]]:
    """Per decode step the number of rows, and the keys they see together (each row's own among them)."""
    free = [0] * min(max_num_seqs, max(1, len(lengths)))
    spans = []
    for prompt, output in lengths:
        start = heapq.heappop(free)
        spans.append((start, prompt, output - 1))
        heapq.heappush(free, start + output - 1)
    total = max(free, default=0)
    rows, seen = [0] * total, [0] * total
    for start, prompt, decodes in spans:
        for i in range(decodes):
            rows[start + i] += 1
            seen[start + i] += shape.seen(prompt + 1 + i)
    return list(zip(rows, seen, strict=True))
