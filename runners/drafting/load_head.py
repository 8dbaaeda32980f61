"""Weights of a draft head, by the names of both formats."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.head_config import HeadConfig
from dodona.oracle.models.weight_files import weight_files
from dodona.runners.drafting.head import DraftHead
from dodona.runners.safetensors_file import open_safetensors
from dodona.runners.third_party import naming

_NOT_READ = ("t2d", "verifier_lm_head.", "verifier_norm.", "rotary_emb.")
"""Tensors that follow from others, or serve training: names that begin so are left out."""


def load_head(
    directory: Path, config: HeadConfig, target: nn.Module, *, dtype: torch.dtype, device: torch.device
) -> DraftHead:
    """The head with its weights, in evaluation mode on `device`.

    It borrows the target's embedding and lm_head where its checkpoint has none. Raises ConfigError where
    tensors are missing, of other shapes, or unknown.
    """
    tensors = read_tensors(directory)
    model: Any = target
    offsets = tensors.pop("d2t", None)
    embedding = None if "embed_tokens.weight" in tensors else model.get_input_embeddings()
    lm_head = None if "lm_head.weight" in tensors else model.get_output_embeddings()
    _check_borrowed(directory, config, embedding, lm_head)
    make = functools.partial(
        _make,
        config,
        fc_bias="fc.bias" in tensors,
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        embed_tokens=embedding,
        lm_head=lm_head,
    )
    if "mask_hidden" in tensors:
        tensors["mask_hidden"] = tensors["mask_hidden"].reshape(1, -1)
    with torch.device("meta"):  # no memory for sizes that the tensors don't have
        expected = make()
    borrowed = expected.borrowed_names()
    own = {n: t for n, t in expected.state_dict().items() if not (borrowed and n.startswith(borrowed))}
    _check(directory, own, tensors)
    head = make()
    head.load_state_dict(tensors, strict=False)
    head.set_targets(_targets(directory, config, offsets))
    return head.prepare(dtype, device)


def random_head(
    config: HeadConfig, target: nn.Module, *, dtype: torch.dtype, device: torch.device, seed: int
) -> DraftHead:
    """A head of random weights; an EAGLE head borrows the target's lm_head as ever."""
    model: Any = target
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        head = _make(config, lm_head=None if config.is_eagle3 else model.get_output_embeddings())
    return head.prepare(dtype, device)


def _make(config: HeadConfig, **parts: Any) -> DraftHead:
    with naming(f"{config.file}: transformers and torch can't make these layers"):
        return DraftHead(config, **parts)


def has_embedding(directory: Path) -> bool:
    """Whether a head's checkpoint has an embedding of its own; nothing is loaded."""
    names: list[str] = []
    for file in weight_files(directory):
        with open_safetensors(file, of="the head") as stored:
            names += stored.keys()
    return "embed_tokens.weight" in map(_speculators_name, names)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """A head's tensors by speculators' names, without those that are not read."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        with open_safetensors(file, of="the head") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    renamed = {_speculators_name(name): value for name, value in tensors.items()}
    return {name: value for name, value in renamed.items() if not name.startswith(_NOT_READ)}


def _speculators_name(name: str) -> str:
    own = name.removeprefix("model.")
    return f"layers.0.{own.removeprefix('midlayer.')}" if own.startswith("midlayer.") else own


def _check_borrowed(
    directory: Path, config: HeadConfig, embedding: nn.Module | None, lm_head: nn.Module | None
) -> None:
    sizes = f"hidden_size={config.hidden_size} is not the target's, {config.target_hidden_size}"
    for name, part in (("embed_tokens", embedding), ("lm_head", lm_head)):
        if part is not None and config.hidden_size != config.target_hidden_size:
            raise ConfigError(f"{directory}: no {name}.weight, and the target's does not fit: {sizes}")
    if lm_head is not None and config.draft_vocab_size != config.vocab_size:
        raise ConfigError(
            f"{directory}: no lm_head.weight, and draft_vocab_size={config.draft_vocab_size} is not "
            f"vocab_size={config.vocab_size}"
        )


def _targets(directory: Path, config: HeadConfig, offsets: Tensor | None) -> Tensor:
    """[draft vocabulary] int64: the target's token of each token that the head drafts."""
    size = config.draft_vocab_size
    if offsets is None:
        if size != config.vocab_size:
            raise ConfigError(
                f"{directory}: no tensor 'd2t', and draft_vocab_size={size} is not vocab_size="
                f"{config.vocab_size}"
            )
        return torch.arange(size)
    if offsets.shape == (size,):
        targets = torch.arange(size) + offsets.to(torch.int64)
        if (
            len(set(targets.tolist())) == size
            and 0 <= int(targets.min()) <= int(targets.max()) < config.vocab_size
        ):
            return targets
    raise ConfigError(
        f"{directory}: tensor 'd2t' is no map of {size} drafted tokens into a vocabulary of "
        f"{config.vocab_size}"
    )


def _check(directory: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for what, names in (
        ("lacks tensors of the head", own.keys() - found.keys()),
        ("has tensors that the head does not have", found.keys() - own.keys()),
        (
            "has tensors of other shapes than config.json says",
            {name for name in own.keys() & found.keys() if own[name].shape != found[name].shape},
        ),
    ):
        if names:
            raise ConfigError(f"{directory}: {what}: {', '.join(sorted(names)[:4])}")
