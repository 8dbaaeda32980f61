"""The forward pass of a dense decoder: Qwen3, Llama and Mistral differ only in what `ModelSpec` says."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

import torch
from torch.nn import functional

from dodona.kernels.attention.arguments import AttentionShape, QKNorm
from dodona.kernels.attention.attended_linear import attended_linear
from dodona.kernels.attention.splits import AttentionParts
from dodona.kernels.linear.activation import silu_and_mul
from dodona.kernels.linear.rms_norm import add_rms_norm, rms_norm
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.runners.device.caches import zero_caches
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.v2.attention import Attention
from dodona.runners.v2.exchange import Exchange
from dodona.runners.v2.models.hidden_states import LAST_HIDDEN_STATE, HiddenStates
from dodona.runners.v2.models.projections import max_small_batch, project, project_small_batch
from dodona.runners.v2.models.rope import cos_sin_table
from dodona.runners.v2.models.spec import ModelSpec
from dodona.runners.v2.models.weights import LayerWeights, ModelWeights

MAX_SHARED_HEAD_ROWS = 8
"""Most rows whose logits two ranks compute together, each for its share of the vocabulary: while rows are
few, the time is that of reading weights; of more, the logits take longer from rank to rank."""

MAX_SHARED_HEAD_ROWS_OF_MORE = 256
"""The same of more ranks, whose shares are smaller."""


class DenseModel:
    """Weights and the computation over them. It holds no state of requests.

    `seen`: hidden states that are kept for a draft head; None for none.
    `exchange`: between the ranks that split each layer, `spec` and `weights` being this one's share; None:
    it is alone. Hidden states and logits are whole on every rank, and the same bits, as the sums are.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        *,
        seen: HiddenStates | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        device = weights.embedding.device
        self._exchange = exchange
        self._sum = _only if exchange is None else exchange.sum
        self._adds_residual = spec.share.index == 0
        self._seen = seen
        self._seen_layers: Container[int] = () if seen is None else seen.layers
        self.spec = spec
        self.weights = weights
        self._qk_norms = [_qk_norm(layer, spec.norm_eps) for layer in weights.layers]
        self._attention = Attention(
            shape=AttentionShape(
                num_q_heads=spec.num_q_heads,
                num_kv_heads=spec.num_kv_heads,
                head_size=spec.head_size,
                scale=spec.head_size**-0.5,
                window=spec.window,
            ),
            dtype=spec.dtype,
            cos_sin=cos_sin_table(spec.rope, spec.head_size, spec.max_model_len).to(device),
        )
        projections = [projection for layer in weights.layers for projection in layer.projections]
        self._is_dense = all(isinstance(projection, torch.Tensor) for projection in projections)
        self._max_small_batch = max_small_batch(
            projections, spec.hidden_size, device=device, dtype=spec.dtype
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and logits."""
        return self.spec.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.spec.vocab_size

    @property
    def max_kv_heads(self) -> int:
        """KV heads of every layer."""
        return self.spec.num_kv_heads

    @property
    def index_dtype(self) -> torch.dtype:
        """Type of token ids and positions."""
        return torch.int32

    @property
    def embedding(self) -> torch.Tensor:
        """[vocab, hidden]."""
        return self.weights.embedding

    @property
    def pads_prompts(self) -> bool:
        """Padding has no slot and no row."""
        return True

    def long_context(self, size: int, *, verifies: bool) -> int | None:
        """Where a small batch has another attention."""
        if size > self._max_small_batch:
            return None
        return self._attention.long_context(size, has_drafts=verifies)

    def make_caches(self, num_blocks: int, block_size: int, num_rows: int) -> Sequence[torch.Tensor]:
        """[num_blocks, 2, num_kv_heads, block_size, head_size] for each layer."""
        shapes = [self.cache_shape(num_blocks, block_size)] * self.spec.num_layers
        return zero_caches(shapes, dtype=self.dtype, device=self.device)

    def cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """Of one layer's keys and values."""
        return (num_blocks, 2, self.spec.num_kv_heads, block_size, self.spec.head_size)

    def forward(
        self,
        inputs: ForwardInputs,
        caches: Sequence[torch.Tensor],
        *,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states, normalised: [tokens, hidden]. Writes the tokens' keys and values into
        `caches`.

        Args:
            inputs: the step.
            caches: one per layer, [num_blocks, 2, num_kv_heads, block_size, head_size].
            wanted: [n], packed indices of the tokens to return: [n, hidden]; None for all. The last layer
                computes keys and values of the other tokens, and nothing else. A small batch of decodes
                returns all tokens regardless.
        """
        eps = self.spec.norm_eps
        if self._is_small_batch(inputs):
            residual = self._forward_small_batch(inputs, caches)
            hidden = rms_norm(x=residual, weight=self.weights.final_norm, eps=eps)
            self._keep(LAST_HIDDEN_STATE, hidden)
            return hidden
        residual = self._embedded(inputs)
        attention = self._attention.plan(inputs)
        last = len(self.weights.layers) - 1
        needs_all = last + 1 in self._seen_layers or LAST_HIDDEN_STATE in self._seen_layers
        update: torch.Tensor | None = None
        # Large intermediates are nested, not named: a name would keep their memory for longer.
        for i, (layer, norm, kv_cache) in enumerate(
            zip(self.weights.layers, self._qk_norms, caches, strict=True)
        ):
            if update is None:
                hidden = rms_norm(x=residual, weight=layer.input_norm, eps=eps)
            else:
                hidden = add_rms_norm(x=update, residual=residual, weight=layer.input_norm, eps=eps)
            self._keep(i, residual)
            attended = attention.attend(qkv=project(hidden, layer.qkv), norm=norm, kv_cache=kv_cache)
            if i == last and wanted is not None and not needs_all:
                attended = torch.index_select(attended, 0, wanted)
                residual = torch.index_select(residual, 0, wanted)
            update = self._sum(project(attended, layer.o))
            hidden = add_rms_norm(x=update, residual=residual, weight=layer.post_norm, eps=eps)
            gated = silu_and_mul(gate_up=project(hidden, layer.gate_up))
            update = self._sum(project(gated, layer.down))
        assert update is not None  # a model has layers
        hidden = add_rms_norm(x=update, residual=residual, weight=self.weights.final_norm, eps=eps)
        if needs_all:
            self._keep(last + 1, residual)
            self._keep(LAST_HIDDEN_STATE, hidden)
            return hidden if wanted is None else torch.index_select(hidden, 0, wanted)
        return hidden

    def logits(self, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] in the model's dtype for hidden states [n, hidden]; written into `out` where given."""
        rows = hidden.shape[0]
        if rows == 1:
            return self._by_head(1, partial(single_token_linear, x=hidden), out)
        return self._by_head(rows, lambda weight, out: torch.mm(hidden, weight.t(), out=out), out)

    def decode(
        self, inputs: ForwardInputs, caches: Sequence[torch.Tensor], *, out: torch.Tensor
    ) -> torch.Tensor:
        """`forward` and `logits` of a step of decodes alone: `out`, [tokens, vocab]."""
        fuses_norm = LAST_HIDDEN_STATE not in self._seen_layers
        if inputs.num_tokens == 1 and fuses_norm and self._is_small_batch(inputs):
            product = partial(
                single_token_linear,
                x=self._forward_small_batch(inputs, caches),
                norm_weight=self.weights.final_norm,
                eps=self.spec.norm_eps,
            )
            return self._by_head(1, product, out)
        return self.logits(self.forward(inputs, caches), out=out)

    def _by_head(
        self, rows: int, product: Callable[..., torch.Tensor], out: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits [rows, vocab] by `product(weight=…, out=…)`. Of few rows, a rank makes those of its share of
        the vocabulary."""
        weight, share = self.weights.lm_head, self.spec.share
        most = MAX_SHARED_HEAD_ROWS if share.ranks == 2 else MAX_SHARED_HEAD_ROWS_OF_MORE
        if self._exchange is None or rows > most or self.vocab_size % share.ranks:
            return product(weight=weight, out=out)
        size = self.vocab_size // share.ranks
        columns = product(weight=weight[share.index * size :][:size], out=None)
        if out is None:
            out = columns.new_empty(rows, self.vocab_size)
        return self._exchange.gather_columns(columns, out)

    def _keep(self, layer: int, states: torch.Tensor) -> None:
        if self._seen is not None and layer in self._seen_layers:
            self._seen.keep(layer, states)

    def _embedded(self, inputs: ForwardInputs) -> torch.Tensor:
        if inputs.embedded is not None:
            return inputs.embedded
        return functional.embedding(inputs.input_ids, self.weights.embedding)

    def _is_small_batch(self, inputs: ForwardInputs) -> bool:
        """Whether the step is of so few decodes that reading weights and launching kernels take all its
        time."""
        return inputs.num_tokens <= self._max_small_batch and not inputs.max_prefill_len

    def _forward_small_batch(self, inputs: ForwardInputs, caches: Sequence[torch.Tensor]) -> torch.Tensor:
        """The residual stream of a small batch before the last norm, [tokens, hidden]. Norms, gates and
        residuals are fused with the products, so a layer takes five launches, and of several ranks two sums.
        The first rank's part of a sum has the residual."""
        eps = self.spec.norm_eps
        linear = project_small_batch
        adds, residual = self._adds_residual, self._embedded(inputs)
        attention = self._attention.plan_small_batch(inputs, leave_parts=self._is_dense)
        for i, (layer, norm, kv_cache) in enumerate(
            zip(self.weights.layers, self._qk_norms, caches, strict=True)
        ):
            self._keep(i, residual)
            qkv = linear(x=residual, weight=layer.qkv, norm_weight=layer.input_norm, eps=eps)
            attended = attention.attend(qkv=qkv, norm=norm, kv_cache=kv_cache)
            if isinstance(attended, AttentionParts):
                assert isinstance(layer.o, torch.Tensor)  # else no parts are left
                residual = attended_linear(parts=attended, weight=layer.o, residual=residual, adds=adds)
            else:
                residual = linear(x=attended, weight=layer.o, residual=residual if adds else None)
            residual = self._sum(residual)
            gated = linear(
                x=residual, weight=layer.gate_up, norm_weight=layer.post_norm, eps=eps, silu_mul=True
            )
            residual = self._sum(linear(x=gated, weight=layer.down, residual=residual if adds else None))
        self._keep(len(self.weights.layers), residual)
        return residual


def _only(x: torch.Tensor) -> torch.Tensor:
    return x


def _qk_norm(layer: LayerWeights, eps: float) -> QKNorm | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    return QKNorm(layer.q_norm, layer.k_norm, eps)
