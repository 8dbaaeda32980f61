"""Chooses at load how a model computes steps: packed, row by row, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import ALONE, Mesh
from dodona.runners.v1.dynamic_rope import install_dynamic_rope
from dodona.runners.v1.packed_model import PLAIN_ATTENTION, PackedModel, set_attention
from dodona.runners.v1.row_model import Continuation, RowModel
from dodona.runners.v1.self_check import SelfCheck, self_check, self_check_rows
from dodona.runners.v1.served_model import ServedModel

logger = logging.getLogger("dodona.engine")


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model and the self-check that it passed."""

    model: ServedModel
    self_check: SelfCheck
    why_not_packed: str | None = None
    """Why its rows are computed one by one; None where they are packed."""


@dataclass(frozen=True, slots=True)
class Checks:
    """How the two ways are checked. They raise UnsupportedConfiguration where one can't be trusted."""

    packed: Callable[..., SelfCheck]
    """As `self_check.self_check`."""
    rows: Callable[..., SelfCheck]
    """As `self_check.self_check_rows`."""


SELF_CHECKS: Final = Checks(self_check, self_check_rows)


def choose(
    module: torch.nn.Module,
    *,
    max_model_len: int,
    compiled: bool = False,
    mesh: Mesh = ALONE,
    rope_changes_beyond: int | None = None,
    need_packing: Sequence[str] = (),
    checks: Checks = SELF_CHECKS,
    is_row_by_row: bool = False,
) -> CheckedModel:
    """The fastest way to compute steps with `module` that passes its self-check.

    Packed where the model can be packed; else row by row, with a cache that goes on by chunks or by tokens;
    else row by row without a cache. rope_changes_beyond: the length beyond which rotary frequencies are
    others, where sequences may grow beyond it; then rows can be packed only where frequencies can follow each
    row's length. mesh: the rank's place among those that share the model. need_packing: features that only
    packed rows have. checks: others where the weights have no values, which `SELF_CHECKS` compare by; then
    is_row_by_row says of a model whether it can't be packed.

    Raises UnsupportedConfiguration with what the model does where no way passes, and where `need_packing` is
    not empty but the model can't be packed.
    """
    if rope_changes_beyond is not None and install_dynamic_rope(module):
        # Up to that length the plain model doesn't depend on how a prompt is cut.
        packed = PackedModel(module, grows_rope=True)
        check = checks.packed(packed, max_model_len=max(1, min(max_model_len, rope_changes_beyond)))
        return CheckedModel(packed, check)
    if is_row_by_row:
        why_not_packed = "models of its type can't be packed"
    elif rope_changes_beyond is None:
        try:
            packed = PackedModel(module, compiled=compiled, context=mesh.context)
            check = checks.packed(packed, max_model_len=max_model_len, pipeline=mesh.pipeline)
            return CheckedModel(packed, check)
        except UnsupportedConfiguration as error:
            why_not_packed = reason(error)
    else:
        why_not_packed = f"its rotary frequencies change beyond {rope_changes_beyond} tokens"
    if need_packing:
        raise UnsupportedConfiguration.lacking("v1", *need_packing, why=why_not_packed)
    set_attention(module, PLAIN_ATTENTION)
    continuations: tuple[Continuation, ...] = ("chunks", "tokens", "none")
    failures: list[str] = []
    for continuation in continuations:
        try:
            rows = RowModel(
                module,
                max_model_len=max_model_len,
                continuation=continuation,
                recompute_beyond=rope_changes_beyond,
            )
            check = checks.rows(rows, max_model_len=max_model_len)
        except UnsupportedConfiguration as error:
            failures.append(reason(error))
            continue
        logger.warning("%s", consequence(rows, why_not_packed))
        return CheckedModel(rows, check, why_not_packed)
    raise UnsupportedConfiguration.lacking(
        "v1", "architecture", why=f"{why_not_packed}; and row by row: {failures[-1]}"
    )


def consequence(model: RowModel, why_not_packed: str) -> str:
    """What it costs that the model's rows are computed one by one, in words."""
    again = {
        "chunks": "",
        "tokens": " A prompt that needs several steps goes on token by token.",
        "none": " It has no cache that could go on: each token computes the whole sequence again.",
    }
    return (
        f"{model.name} is slow: each request is computed on its own, because {why_not_packed}."
        f"{again[model.continuation]} Prefixes are not cached."
    )


def reason(error: UnsupportedConfiguration) -> str:
    """An error's text without "runner v1 does not support …: "."""
    return str(error).partition(": ")[2] or str(error)
