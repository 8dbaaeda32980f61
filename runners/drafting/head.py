"""Draft heads of the EAGLE family: `DraftHead`.

A head predicts, from a token x[t+1] and *features* of the target at the position before it, g[t], the token
x[t+2]. Its features are the target's hidden states, projected by `fc` (EAGLE3, P-EAGLE), or the target's last
hidden state itself (EAGLE). At the following depths the head's own output takes the place of the features,
and the drafted token that of x[t+1]. P-EAGLE has a learned vector and a mask token in their place, so that no
depth waits for another.

EAGLE-1: Li et al. 2024 (arXiv:2401.15077); EAGLE-3: Li et al. 2025 (arXiv:2503.01840); the layout of tensors
is that of SafeAILab/EAGLE and of vllm-project/speculators.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dodona.oracle.models.head_config import HeadConfig
from dodona.runners.interface import LayerKVSpec


class Attend(Protocol):
    """Attention of one layer of a head."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, T, D], key and value [B, Hkv, T, D] of new tokens -> [B, T, H, D]."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class HeadAttention(nn.Module):
    """Llama's attention over inputs of `input_size`; with norms of queries and keys where the layers are
    Qwen3's."""

    def __init__(self, config: Any, input_size: int, *, qk_norm: bool) -> None:
        super().__init__()
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        bias = bool(config.attention_bias)
        self.head_size = size
        self.q_proj = nn.Linear(input_size, heads * size, bias=bias)
        self.k_proj = nn.Linear(input_size, kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(input_size, kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(size, config.rms_norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size, config.rms_norm_eps) if qk_norm else nn.Identity()

    def forward(self, layer: int, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_size)
        q = _rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2), rotary)
        k = _rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), rotary)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        out: Tensor = self.o_proj(attend(layer, q, k, v).flatten(-2))
        return out


class HeadMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: Any) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, bool(config.mlp_bias)
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class HeadLayer(nn.Module):
    """A layer; EAGLE3's first one attends over embedding and features side by side."""

    def __init__(self, head: HeadConfig, config: Any, index: int, *, qk_norm: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.index = index
        self.wide = head.is_eagle3 and index == 0
        self.norm_before_residual = head.norm_before_residual
        # EAGLE's first layer has no norm of its own: `fc` comes right before it.
        self.input_layernorm = RMSNorm(size, eps) if head.is_eagle3 or index else nn.Identity()
        if self.wide:
            self.hidden_norm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.self_attn = HeadAttention(config, 2 * size if self.wide else size, qk_norm=qk_norm)
        self.mlp = HeadMLP(config)

    def forward(self, x: Tensor, embedded: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        residual = x
        if self.wide:
            normed = self.hidden_norm(x)
            if self.norm_before_residual:
                residual = normed
            inputs = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        else:
            inputs = self.input_layernorm(x)
        x = residual + self.self_attn(self.index, inputs, rotary, attend)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class DraftHead(nn.Module):
    """A head. `embed_tokens` and `lm_head` are given where it borrows the target's."""

    def __init__(
        self,
        head: HeadConfig,
        *,
        fc_bias: bool = False,
        qk_norm: bool = False,
        embed_tokens: nn.Module | None = None,
        lm_head: nn.Module | None = None,
    ) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        super().__init__()
        self.head = head
        self.config: Any = LlamaConfig.from_dict({**head.layer_config, "model_type": "llama"})
        config = self.config
        size, wide = head.hidden_size, head.target_hidden_size
        count = len(head.layer_ids)
        self.embed_tokens = nn.Embedding(head.vocab_size, size) if embed_tokens is None else embed_tokens
        self.fc = nn.Linear(count * wide if head.is_eagle3 else 2 * size, size, bias=fc_bias)
        if head.norm_before_fc:
            self.input_norm = RMSNorm(count * wide, config.rms_norm_eps)
        if head.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(wide, config.rms_norm_eps) for _ in range(count))
        self.layers = nn.ModuleList(
            HeadLayer(head, config, index, qk_norm=qk_norm) for index in range(head.num_layers)
        )
        self.norm = RMSNorm(size, config.rms_norm_eps) if head.is_eagle3 else nn.Identity()
        borrowed_head = lm_head
        self.lm_head = nn.Linear(size, head.draft_vocab_size, bias=False) if lm_head is None else lm_head
        if head.is_parallel:
            self.mask_hidden = nn.Parameter(torch.zeros(1, count * wide))
        self.rotary: Any = LlamaRotaryEmbedding(config)
        self._borrowed = tuple(
            f"{name}." for name, part in (("embed_tokens", embed_tokens), ("lm_head", borrowed_head)) if part
        )
        self.targets: Tensor
        self.register_buffer("targets", torch.arange(head.draft_vocab_size), persistent=False)

    def borrowed_names(self) -> tuple[str, ...]:
        """How the names of tensors begin that are the target's."""
        return self._borrowed

    def own_tensors(self) -> dict[str, Tensor]:
        """By name, what it does not borrow, with `targets`."""
        tensors = self.state_dict(keep_vars=True)
        own = {n: t for n, t in tensors.items() if not n.startswith(self._borrowed or ("-",))}
        return {**own, "targets": self.targets}

    def set_targets(self, targets: Tensor) -> None:
        """[draft vocabulary] int64: the target's token of each token that the head drafts."""
        self.targets.copy_(targets)

    def prepare(self, dtype: torch.dtype, device: torch.device) -> DraftHead:
        """For inference: its own weights in `dtype`, all of it on `device`."""
        for name, parameter in self.named_parameters():
            if not name.startswith(self._borrowed or ("-",)):
                parameter.data = parameter.data.to(dtype)
        return self.requires_grad_(False).to(device).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.targets.device

    @property
    def kv_layers(self) -> tuple[LayerKVSpec, ...]:
        """What an entry adds to a KV cache."""
        config = self.config
        layer = LayerKVSpec(config.num_key_value_heads, config.head_dim, config.head_dim)
        return (layer,) * self.head.num_layers

    @property
    def scaling(self) -> float:
        """Factor of attention scores."""
        return float(self.config.head_dim**-0.5)

    def features(self, hidden: Tensor) -> Tensor:
        """The target's hidden states at `layer_ids`, side by side [..., n * target size] -> [..., size]; for
        EAGLE the last hidden state, as it is."""
        if not self.head.is_eagle3:
            return hidden
        if self.head.norm_before_fc:
            hidden = self.input_norm(hidden)
        if self.head.fc_norm:
            parts = hidden.chunk(len(self.fc_norm), dim=-1)
            hidden = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        found: Tensor = self.fc(hidden)
        return found

    def forward(self, token_ids: Tensor, features: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """token_ids [B, T], features [B, T, size], positions [B, T] -> the layers' output [B, T, size]."""
        embedded = self.embed_tokens(token_ids).to(features.dtype)
        x = features if self.head.is_eagle3 else self.fc(torch.cat([embedded, features], dim=-1))
        rotary = self.rotary(x, positions)
        for layer in self.layers:
            x = layer(x, embedded, rotary, attend)
        return x

    def next_features(self, output: Tensor) -> Tensor:
        """What the next depth gets of the layers' output."""
        found: Tensor = self.norm(output) if self.head.norm_output else output
        return found

    def draft_logits(self, output: Tensor) -> Tensor:
        """The layers' output [..., size] -> logits [..., draft vocabulary]."""
        found: Tensor = self.lm_head(self.norm(output))
        return found

    def logits(self, output: Tensor) -> Tensor:
        """The layers' output [n, size] -> logits [n, vocabulary]; -inf for tokens that it can't draft."""
        drafted = self.draft_logits(output)
        if drafted.shape[-1] == self.head.vocab_size:
            return drafted
        full = drafted.new_full((*drafted.shape[:-1], self.head.vocab_size), float("-inf"))
        return full.index_copy_(-1, self.targets, drafted)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (part[:, None].to(x.dtype) for part in rotary)
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin
