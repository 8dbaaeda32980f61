"""config.json of a draft head: EAGLE and EAGLE3 as SafeAILab publishes them, EAGLE3 and P-EAGLE as
speculators writes them. Read and compared with the target before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.printable import short

SPECULATORS_TYPES = ("eagle3", "peagle")
"""`speculators_model_type` of the heads that are read."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """A draft head, and where it looks into its target."""

    file: str
    is_eagle3: bool
    """EAGLE3 or P-EAGLE; else EAGLE, which looks at the target's last hidden state alone."""
    is_parallel: bool
    """P-EAGLE: drafts all depths in one pass."""
    layer_config: Mapping[str, Any]
    """The head's layers as a configuration of transformers' Llama."""
    hidden_size: int
    target_hidden_size: int
    vocab_size: int
    draft_vocab_size: int
    num_layers: int
    layer_ids: tuple[int, ...]
    """EAGLE3: whose input is looked at; the number of layers means the last one's output. In order."""
    norm_before_residual: bool
    norm_before_fc: bool
    """One norm over all hidden states of the target together."""
    fc_norm: bool
    """One norm over each hidden state of the target."""
    norm_output: bool
    """The next depth gets the head's output after its last norm."""
    mask_token_id: int | None
    """P-EAGLE: the token at depths 1 and on."""
    num_speculative_tokens: int | None
    """Drafts that the head was made for, where it says so."""


def read_head_config(directory: Path, *, method: str, parallel: bool, target: ModelInfo) -> HeadConfig:
    """The head in a directory, as `method` ("eagle" or "eagle3") and `parallel_drafting` ask for it.

    Raises ConfigError that names the file and field where it is another kind of head, or does not fit the
    target: hidden size, vocabulary, layers.
    """
    file = directory / "config.json"
    raw = read_json(file, expected="a draft head's config.json")
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected an object, got {type(raw).__name__}")
    kind = raw.get("speculators_model_type")
    if kind is not None and kind not in SPECULATORS_TYPES:
        raise ConfigError(
            f"{file}: field 'speculators_model_type': {kind!r:.80} is none of the heads that are read, "
            f"{', '.join(SPECULATORS_TYPES)}"
        )
    layers = raw.get("transformer_layer_config", raw) if kind else raw
    if not isinstance(layers, dict):
        raise ConfigError(
            f"{file}: field 'transformer_layer_config': expected an object, got {type(layers).__name__}"
        )
    fields = _Fields(str(file), raw, layers)
    is_eagle3 = method == "eagle3"
    if kind is not None and not is_eagle3:
        raise ConfigError(f"{file}: is a head of kind {kind!r:.80}; set speculative_config.method='eagle3'")
    mask_token_id = fields.mask_token_id()
    is_parallel = kind == "peagle" or (kind is None and mask_token_id is not None)
    if is_parallel and not parallel:
        raise ConfigError(
            f"{file}: a P-EAGLE head drafts all tokens in one pass, and as a sequential one it would draft "
            "what is hardly ever accepted; set speculative_config.parallel_drafting=true"
        )
    if parallel and not is_parallel:
        raise ConfigError(
            f"{file}: speculative_config.parallel_drafting needs a P-EAGLE head (speculators_model_type "
            "'peagle', with mask_token_id); set parallel_drafting=false for this one"
        )
    hidden_size = fields.size("hidden_size", layers)
    vocab_size = fields.size("vocab_size", layers)
    found = HeadConfig(
        file=str(file),
        is_eagle3=is_eagle3,
        is_parallel=is_parallel,
        layer_config=layers,
        hidden_size=hidden_size,
        target_hidden_size=fields.size("target_hidden_size", raw, hidden_size),
        vocab_size=vocab_size,
        draft_vocab_size=fields.size("draft_vocab_size", raw, vocab_size),
        num_layers=fields.size("num_hidden_layers", layers, 1),
        layer_ids=fields.layer_ids(target) if is_eagle3 else (),
        norm_before_residual=fields.flag("norm_before_residual"),
        norm_before_fc=fields.flag("norm_before_fc"),
        fc_norm=fields.flag("fc_norm"),
        norm_output=fields.flag("norm_output"),
        mask_token_id=mask_token_id if is_parallel else None,
        num_speculative_tokens=fields.num_speculative_tokens(),
    )
    if is_parallel and mask_token_id is None:
        raise ConfigError(f"{file}: field 'mask_token_id' is missing; a P-EAGLE head needs it")
    if mask_token_id is not None and mask_token_id >= vocab_size:
        raise ConfigError(
            f"{file}: field 'mask_token_id': {short(mask_token_id)} is no token of a vocabulary of "
            f"{vocab_size}"
        )
    _check_fit(found, target)
    return found


def _check_fit(head: HeadConfig, target: ModelInfo) -> None:
    pairs = (
        (
            "target_hidden_size" if head.is_eagle3 else "hidden_size",
            head.target_hidden_size,
            target.hidden_size,
        ),
        ("vocab_size", head.vocab_size, target.vocab_size),
    )
    for field, mine, theirs in pairs:
        if mine != theirs:
            raise ConfigError(
                f"{head.file}: {field}={mine} does not fit the target, {target.file}, where it is {theirs}; "
                "choose the head that was trained for this model"
            )
    for field, mine, most in (
        ("draft_vocab_size", head.draft_vocab_size, head.vocab_size),
        ("num_hidden_layers", head.num_layers, target.num_hidden_layers),
    ):
        if most is not None and mine > most:
            raise ConfigError(f"{head.file}: {field}={mine} is more than the target has, {most}")
    if not head.is_eagle3 and head.hidden_size != head.target_hidden_size:
        raise ConfigError(f"{head.file}: an EAGLE head has the target's hidden_size")


@dataclass(frozen=True, slots=True)
class _Fields:
    file: str
    raw: Mapping[str, Any]
    layers: Mapping[str, Any]

    def size(self, field: str, source: Mapping[str, Any], default: int | None = None) -> int:
        value = source.get(field)
        if value is None:
            value = default
        if type(value) is not int or value < 1:
            raise ConfigError(f"{self.file}: field {field!r}: expected a positive integer, got {value!r:.80}")
        return value

    def flag(self, field: str) -> bool:
        value = self.raw.get(field)
        if value is not None and type(value) is not bool:
            raise ConfigError(f"{self.file}: field {field!r}: expected true or false, got {value!r:.80}")
        return bool(value)

    def layer_ids(self, target: ModelInfo) -> tuple[int, ...]:
        count = target.num_hidden_layers
        if count is None:
            raise ConfigError(f"{target.file} has no num_hidden_layers")
        name = "eagle_aux_hidden_state_layer_ids"
        nested = self.raw.get("eagle_config")
        given = self.raw.get(name) or (nested.get(name) if isinstance(nested, dict) else None)
        if given is None:
            given = [2, count // 2, count - 3]
            if not 0 <= given[0] < given[1] < given[2]:
                raise ConfigError(
                    f"{self.file}: field {name!r} is missing, and the usual layers 2, n/2 and n-3 are no "
                    f"three layers of the {count} of {target.file}; give them in the head's config.json"
                )
        if (
            not isinstance(given, list)
            or not given
            or not all(type(i) is int and 0 <= i <= count for i in given)
        ):
            raise ConfigError(
                f"{self.file}: field {name!r}: expected layers from 0 to {count} of {target.file}, "
                f"got {given!r:.80}"
            )
        return tuple(given)

    def mask_token_id(self) -> int | None:
        nested = self.raw.get("dflash_config")
        places = [self.raw.get(name) for name in ("mask_token_id", "pard_token", "ptd_token_id")]
        if isinstance(nested, dict):
            places.append(nested.get("mask_token_id"))
        value = next((place for place in places if place is not None), None)
        if value is not None and (type(value) is not int or value < 0):
            raise ConfigError(f"{self.file}: field 'mask_token_id': expected a token id, got {value!r:.80}")
        return value

    def num_speculative_tokens(self) -> int | None:
        config = self.raw.get("speculators_config")
        if not isinstance(config, dict):
            return None
        methods = config.get("proposal_methods")
        default = config.get("default_proposal_method")
        for method in methods if isinstance(methods, list) else ():
            if isinstance(method, dict) and method.get("proposal_type") == default:
                return self.size("speculative_tokens", method)
        return None
