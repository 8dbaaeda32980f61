"""Multi-token prediction (MTP): the layer beside a model's own that drafts from its last hidden state.

With h the target's hidden state at a position, after its last norm, and x the token that follows:

    out = norm(block(eh_proj([enorm(embed(x)), hnorm(h)])));  logits = lm_head(out)

where `block` is a layer as the target's own and embedding and lm_head are the target's; at the next depth out
takes the place of h, and the drafted token that of x. DeepSeek-V3 (arXiv:2412.19437, section 2.2); names and
order as in its published checkpoints and in those of Qwen3-Next. Of several MTP layers, the first drafts at
each depth.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.expected_tensors import check_mtp_tensors, mtp_name
from dodona.oracle.models.stored_tensors import stored_tensors
from dodona.oracle.models.weight_files import weight_files
from dodona.runners.interface import LayerKVSpec
from dodona.runners.safetensors_file import open_safetensors
from dodona.runners.third_party import naming
from dodona.runners.v1.attention import PAGED_ATTENTION
from dodona.runners.v1.discovery import RECORDING_ATTENTION, recording
from dodona.runners.v1.model_making import making_a_model
from dodona.runners.v1.packed_model import set_attention


class MtpHead(nn.Module):
    """An MTP layer over paged KV. `runners.drafting.head.DraftHead` says what its methods do."""

    def __init__(self, single: Any, target: Any) -> None:
        """single: a model of the target's class with one layer, which becomes the block."""
        super().__init__()
        decoder = single.get_decoder()
        config = single.config.get_text_config(decoder=True)
        size = config.hidden_size
        self.block = decoder.layers[0]
        self.norm = decoder.norm
        self.enorm, self.hnorm = copy.deepcopy(decoder.norm), copy.deepcopy(decoder.norm)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        # In a list, so that the target's parameters are not counted among these.
        self._targets = [target.get_input_embeddings(), target.get_output_embeddings()]
        self._rotary = [decoder.rotary_emb]
        self._single = [single]
        """Its configuration names the attention."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.eh_proj.weight.device

    @property
    def kv_layers(self) -> tuple[LayerKVSpec, ...]:
        """KV of its attention call, found by a forward pass over two tokens."""
        set_attention(self._single[0], RECORDING_ATTENTION)
        weight = self.eh_proj.weight
        features = weight.new_zeros(1, 2, weight.shape[0])
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        with torch.inference_mode(), recording(self.device) as calls:
            self(tokens, features, torch.arange(2, device=self.device)[None])
        set_attention(self._single[0], PAGED_ATTENTION)
        return tuple(call.spec for call in calls)

    def features(self, hidden: Tensor) -> Tensor:
        """The target's last hidden state, as it is."""
        return hidden

    def forward(self, token_ids: Tensor, features: Tensor, positions: Tensor, attend: Any = None) -> Tensor:
        """token_ids [B, T], features [B, T, size], positions [B, T] -> [B, T, size]. Its attention goes
        through transformers' interface; `attend` is not used."""
        embedded = self._targets[0](token_ids).to(features.dtype)
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(features)], dim=-1))
        (embedding,) = self._rotary
        # transformers 5.17's multi-axis embeddings do not expand the positions of text themselves.
        has_axes = hasattr(embedding, "mrope_section")
        rotary = embedding(x, position_ids=positions.expand(3, -1, -1) if has_axes else positions)
        output = self.block(
            x, attention_mask=None, position_embeddings=rotary, position_ids=positions, past_key_values=None
        )
        found: Tensor = self.norm(output[0] if isinstance(output, tuple) else output)
        return found

    def next_features(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def logits(self, output: Tensor) -> Tensor:
        """[n, size] -> [n, vocabulary]."""
        found: Tensor = self._targets[1](output)
        return found

    def own_tensors(self) -> dict[str, Tensor]:
        """By name, its weights."""
        tensors: dict[str, Tensor] = self.state_dict(keep_vars=True)
        return tensors


def load_mtp_head(directory: Path, target: Any, *, dtype: torch.dtype) -> MtpHead:
    """The MTP layer of the target's checkpoint, on the target's device.

    Raises ConfigError where the checkpoint has none, or where tensors are missing or of other shapes.
    """
    config = target.config.get_text_config(decoder=True)
    tensors = _read(directory, config.num_hidden_layers)
    block = {
        f"model.layers.0.{name.removeprefix('block.')}": value
        for name, value in tensors.items()
        if name.startswith("block.")
    }
    with making_a_model(), naming(f"transformers can't make the MTP layer of {directory}"):
        single, info = type(target).from_pretrained(
            None,
            config=_of_one_layer(config),
            state_dict={**block, "model.norm.weight": tensors.get("norm.weight", torch.empty(0))},
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
        )
    head = MtpHead(single, target)
    wrong = [name for name in info["missing_keys"] if name.startswith(("model.layers.", "model.norm."))]
    wrong += [str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"]]
    wrong += info["unexpected_keys"]
    for part in ("eh_proj", "enorm", "hnorm"):
        weight, stored = getattr(head, part).weight, tensors.get(f"{part}.weight")
        if stored is None or stored.shape != weight.shape:
            wrong.append(f"{part}.weight")
        else:
            weight.data.copy_(stored)
    if wrong:
        raise ConfigError(
            f"{directory}: tensors of the MTP layer are missing or do not fit: {', '.join(sorted(wrong)[:4])}"
        )
    return _ready(head, target, dtype)


def random_mtp_head(target: Any, *, dtype: torch.dtype, seed: int) -> MtpHead:
    """The same with random weights."""
    with making_a_model(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _of_one_layer(target.config.get_text_config(decoder=True))
        head = MtpHead(type(target)._from_config(config, attn_implementation="eager"), target)
    return _ready(head, target, dtype)


def _ready(head: MtpHead, target: Any, dtype: torch.dtype) -> MtpHead:
    device = next(target.parameters()).device
    head._rotary[0].to(device)
    return head.requires_grad_(False).to(device, dtype).eval()


def _of_one_layer(config: Any) -> Any:
    """The configuration of a model whose only layer is as the MTP layer: full attention, with experts where
    the model has some. Its vocabulary is of no use."""
    found = copy.deepcopy(config)
    found.num_hidden_layers = 1
    for field, value in (
        ("layer_types", ["full_attention"]),
        ("mlp_layer_types", ["sparse"]),
        ("first_k_dense_replace", 0),
        ("pad_token_id", None),
        ("vocab_size", 1),
        ("tie_word_embeddings", False),
    ):
        if getattr(found, field, None) is not None:
            setattr(found, field, value)
    return found


def _read(directory: Path, num_layers: int) -> dict[str, Tensor]:
    """The MTP layer's tensors, by their names here."""
    check_mtp_tensors(directory, stored_tensors(directory), num_layers)
    found: dict[str, Tensor] = {}
    for file in weight_files(directory):
        with open_safetensors(file) as stored:
            for name in stored.keys():  # noqa: SIM118
                mine = mtp_name(name, num_layers)
                if mine is not None:
                    found[mine] = stored.get_tensor(name)
    return found
