"""What each release between two decides of a start of vLLM's server, and how to keep what there was."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dodona.oracle.analysis.architectures import typical_model
from dodona.oracle.decide.verdict import ReportedConsequence, Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.consequence import SEVERITIES, Severity
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.known_names import architecture_of, is_quantized_name
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.printable import without_userinfo
from dodona.oracle.select import verdict_of
from dodona.oracle.systems.books import bundled_rulebooks, load_rulebook
from dodona.oracle.systems.vllm.arguments import Arguments, from_invocation
from dodona.oracle.systems.vllm.configuration import with_overrides
from dodona.oracle.systems.vllm.deployment import VllmDeployment, environment_of
from dodona.oracle.systems.vllm.releases import release_number, release_of
from dodona.oracle.upgrade.places import Found, Place

_SIZE_FIELDS: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
)
"""Fields of a ModelInfo that differ within a family."""

_SIZES: Final = frozenset(
    {
        *_SIZE_FIELDS,
        "head_dim",
        "max_sequence_length",
        "max_seq_len",
        "max_seq_length",
        "model_max_length",
        "n_ctx",
        "n_embd",
        "n_head",
        "n_positions",
        "seq_length",
    }
)
"""The same in config.json, with other spellings."""

Change = Literal["runner", "start", "consequence"]


@dataclass(frozen=True)
class Step:
    """What one release decides."""

    release: str
    runner: str | None
    starts: bool
    why: tuple[str, ...]
    """What speaks against a runner, or refuses the start: features, as people know them."""


@dataclass(frozen=True)
class Finding:
    """What an upgrade does to one start of vLLM's server."""

    path: str
    line: int
    place: Place
    name: str
    model: str
    architecture: str
    """"" where it is not known."""
    image_release: str | None
    before: Step
    after: Step
    changes: tuple[Change, ...]
    first_changed: str | None
    """The first release, of those between, whose runner or start differs from the one before."""
    new_consequences: tuple[ReportedConsequence, ...]
    """Those of the release to upgrade to that the release before does not report."""
    gone_consequences: tuple[str, ...]
    """Ids of those that are no longer reported."""
    keep: str | None
    """What to write to keep the runner, where that works."""
    advice: tuple[str, ...]
    """What else can be done, or why the runner can't be kept."""
    unread: tuple[str, ...]
    assumed: tuple[str, ...]

    def worst(self) -> int:
        """The index in SEVERITIES of the most severe new consequence; -1 where there is none."""
        return max((SEVERITIES.index(c.severity) for c in self.new_consequences), default=-1)

    def matters(self, fail_on: Severity) -> bool:
        """Whether the runner or the start changes, or a new consequence is this severe."""
        return (
            "runner" in self.changes or "start" in self.changes or self.worst() >= SEVERITIES.index(fail_on)
        )


@dataclass(frozen=True)
class Unknown:
    """A start of vLLM's server of which nothing can be said, and why."""

    path: str
    line: int
    place: Place
    name: str
    reason: str


def books_between(first: str, last: str) -> tuple[RuleBook, ...]:
    """The books of vLLM's releases from one to another, both named as `vllm/0.24.0` or `0.24.0`.

    Raises ConfigError for a release without a book, and where the second isn't the later one.
    """
    names = {book: release_of(book) for book in bundled_rulebooks() if book.startswith("vllm/")}
    ends = []
    for option, name in (("--from", first), ("--to", last)):
        found = f"vllm/{name.removeprefix('vllm/').removeprefix('v')}"
        if found not in names:
            # the message of the loader names the nearest
            load_rulebook(found)
            raise ConfigError(f"{option} {name}: no such rule book of vLLM")
        ends.append(_number(found))
    if ends[0] >= ends[1]:
        raise ConfigError(f"--from {first} --to {last}: the second is to be the later release")
    between = sorted((name for name in names if ends[0] <= _number(name) <= ends[1]), key=_number)
    return tuple(load_rulebook(name) for name in between)


def _number(book: str) -> tuple[int, int, int]:
    return release_number(release_of(book) or "0") or (0, 0, 0)


def compare(found: Found, books: Sequence[RuleBook], machine: Environment) -> Finding | Unknown:
    """What the last of the books changes against the first."""
    first = found.invocation
    try:
        read = [_read(found, book) for book in books]
        name = _model_name(read[-1])
        model, assumed = _model(name)
        deployments = [
            _deployment(arguments, model, machine, book) for arguments, book in zip(read, books, strict=True)
        ]
        verdicts = [verdict_of(deployment, trusted=True) for deployment in deployments]
    except ConfigError as error:
        return Unknown(found.path, found.line, found.place, found.name, _without_values(str(error)))
    steps = [_step(verdict, book) for verdict, book in zip(verdicts, books, strict=True)]
    before, after = verdicts[0], verdicts[-1]
    had = {c.consequence for c in before.consequences}
    has = {c.consequence for c in after.consequences}
    new = tuple(c for c in after.consequences if c.consequence not in had)
    changes: list[Change] = []
    if before.runner != after.runner:
        changes.append("runner")
    if steps[0].starts != steps[-1].starts:
        changes.append("start")
    if new:
        changes.append("consequence")
    keep, advice = _keep(found, steps, deployments[-1])
    return Finding(
        path=found.path,
        line=found.line,
        place=found.place,
        name=found.name,
        model=without_userinfo(name),
        architecture=model.architectures[0],
        image_release=first.release,
        before=steps[0],
        after=steps[-1],
        changes=tuple(changes),
        first_changed=_first_changed(steps),
        new_consequences=new,
        gone_consequences=tuple(sorted(had - has)),
        keep=keep,
        advice=advice,
        unread=tuple(dict.fromkeys((*read[0].unread, *read[-1].unread))),
        assumed=(*assumed, *after.assumptions),
    )


def _read(found: Found, book: RuleBook) -> Arguments:
    invocation = found.invocation
    if any(word.partition("=")[0] == "--config" for word in invocation.arguments):
        raise ConfigError("its arguments are in a file (--config), which is not read here; give that file")
    return from_invocation(invocation, release_of(book.rulebook))


def _deployment(
    arguments: Arguments, model: ModelInfo, machine: Environment, book: RuleBook
) -> VllmDeployment:
    environment = environment_of(machine, arguments.environ, book)
    found = with_overrides(model, arguments.sections)
    return VllmDeployment(arguments.sections, found, environment, book, arguments.unread)


def _model_name(arguments: Arguments) -> str:
    name = (arguments.sections.get("model_config") or {}).get("model")
    if not name:
        unread = next((text for text in arguments.unread if text.startswith("--model:")), "no model is named")
        raise ConfigError(unread)
    return str(name)


def _model(name: str) -> tuple[ModelInfo, tuple[str, ...]]:
    """What is known of a model by its name or folder, and how, where it isn't read. Nothing is downloaded."""
    if os.path.isdir(name) and Path(name, "config.json").is_file():
        return ModelInfo.load(name), ()
    architecture = architecture_of(name)
    if architecture is None:
        raise ConfigError("the model is not known by its name, and its config.json is not here")
    quantized = is_quantized_name(name)
    told = f"the model is {architecture}{', quantized' if quantized else ''}, by its name; not its sizes"
    return _named_model(architecture, quantized), (told,)


@functools.lru_cache(maxsize=256)
def _named_model(architecture: str, quantized: bool) -> ModelInfo:
    """A model of which the architecture is known, and neither the sizes nor how its weights are quantized."""
    # rules of vLLM's books read of the method only that there is one
    more = {"quantization_config": {"quant_method": "fp8"}} if quantized else {}
    found = typical_model(architecture, more)
    text = {name: value for name, value in found.text.items() if name not in _SIZES}
    unknown: dict[str, Any] = dict.fromkeys(_SIZE_FIELDS)
    return dataclasses.replace(found, text=text, **unknown)


def _step(verdict: Verdict, book: RuleBook) -> Step:
    starts = verdict.runner is not None and not verdict.refusals
    reasons = verdict.refusals or tuple(r for r in verdict.reasons if verdict.runner not in r.runners)
    if verdict.forced and not verdict.refusals:
        reasons = tuple(r for r in verdict.reasons if r.rule == verdict.decided_by)
    return Step(
        release_of(book.rulebook) or book.rulebook,
        verdict.runner,
        starts,
        tuple(dict.fromkeys(reason.feature for reason in reasons)),
    )


def _first_changed(steps: Sequence[Step]) -> str | None:
    pairs = itertools.pairwise(steps)
    return next((b.release for a, b in pairs if (a.runner, a.starts) != (b.runner, b.starts)), None)


def _keep(found: Found, steps: Sequence[Step], last: VllmDeployment) -> tuple[str | None, tuple[str, ...]]:
    """What to write to keep the runner, and what else there is to say."""
    before, after = steps[0], steps[-1]
    if before.runner is None or (before.runner == after.runner and after.starts >= before.starts):
        return None, ()
    if before.runner == after.runner:
        return None, _cures(verdict_of(last, trusted=True))
    if last.book.environment is None:
        return None, ()
    variable = last.book.environment.variable
    value = "0" if before.runner == "v1" else "1"
    forced = dataclasses.replace(
        last, environment=dataclasses.replace(last.environment, override=before.runner)
    )
    verdict = verdict_of(forced, trusted=True)
    if verdict.runner == before.runner and not verdict.refusals:
        return written(found.place, variable, value), ()
    against = ", ".join(reason.feature for reason in verdict.refusals) or "another rule decides first"
    return None, (f"{variable}={value} does not keep {before.runner}: {against}", *_cures(verdict))


def _cures(verdict: Verdict) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{r.feature}: {r.because}" for r in verdict.refusals))


_WRITTEN: Final[Mapping[Place, str]] = {
    "shell": "{variable}={value} before the command",
    "dockerfile": "ENV {variable}={value}",
    "compose": 'environment: {{{variable}: "{value}"}}',
    "kubernetes": 'env: [{{name: {variable}, value: "{value}"}}]',
    "kserve": 'env: [{{name: {variable}, value: "{value}"}}]',
    "helm": 'env: [{{name: {variable}, value: "{value}"}}]',
    "recipe": "{variable}={value} in the environment of the server",
    "systemd": "Environment={variable}={value}",
}


def written(place: Place, variable: str, value: str) -> str:
    """How the variable that chooses the runner is set in a place."""
    return _WRITTEN[place].format(variable=variable, value=value)


def _without_values(message: str) -> str:
    """A message without the values that it quotes, which may be secrets."""
    message = re.sub(r"(, | )got .*", ", got another", message, flags=re.DOTALL)
    return re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", without_userinfo(message.splitlines()[0]))
