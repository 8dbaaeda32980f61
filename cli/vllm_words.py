"""`dodona select --rulebook vllm/…`: all but dodona's own options is vLLM's, and is read as vLLM reads it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from typer.core import TyperCommand

from dodona.oracle.config.flat import flat_names
from dodona.oracle.machine.environment import Environment

_words: ContextVar[list[str] | None] = ContextVar("vllm_words", default=None)
_ALSO_VLLMS = ("config",)
"""Options that vLLM has too: there they are vLLM's."""


class SelectCommand(TyperCommand):
    """Sets vLLM's words aside before the options are parsed: not every flag of vLLM can be an option."""

    # typer may bring a click of its own, so that neither's types can be named here
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse dodona's own options; leave vLLM's words to `vllm_words`."""
        _words.set(None)
        books = (_option(args, "--compare") or _option(args, "--rulebook") or "").split(",")
        if any(map(_is_vllm_book, books)) and not {"--help", "-h"} & set(args):
            args, words = self._split(args)
            _words.set(words)
        return super().parse_args(ctx, args)

    def _split(self, args: list[str]) -> tuple[list[str], list[str]]:
        own: dict[str, bool] = {}
        for parameter in self.params:
            if parameter.name not in (*flat_names(), *_ALSO_VLLMS):
                is_flag = bool(getattr(parameter, "is_flag", False))
                own.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), is_flag))
        mine: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for word in rest:
            if word == "--":
                words += rest
            elif word.partition("=")[0] in own:
                mine.append(word)
                if "=" not in word and not own[word]:
                    mine += [value for value in [next(rest, None)] if value is not None]
            else:
                words.append(word)
        return mine, words


def vllm_words() -> list[str] | None:
    """The words of the command that are vLLM's; None where the rule book isn't one of vLLM's."""
    return _words.get()


def vllm_environment(rulebook: str, assume_gpu: bool) -> Environment | None:
    """The machine to decide for: None means this one; else a Hopper GPU, and vLLM's environment variable."""
    if not assume_gpu:
        return None
    from dodona.oracle.machine.environment import assumed_gpu
    from dodona.oracle.systems.books import load_rulebook
    from dodona.oracle.systems.vllm.select import detected

    return detected(load_rulebook(rulebook), machine=assumed_gpu())


def _option(args: list[str], name: str) -> str | None:
    """The value of an option in unparsed words; the last one counts."""
    found = None
    for i, word in enumerate(args):
        if word == "--":
            break
        if word == name and i + 1 < len(args):
            found = args[i + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def _is_vllm_book(rulebook: str) -> bool:
    rulebook = rulebook.strip()
    if not rulebook.endswith((".yaml", ".yml")):
        return rulebook.startswith("vllm/")
    from dodona.oracle.errors import DodonaError
    from dodona.oracle.systems.books import load_rulebook
    from dodona.oracle.systems.registry import VLLM

    try:
        return load_rulebook(rulebook).system == VLLM
    except DodonaError:
        # the command itself reports it
        return False
