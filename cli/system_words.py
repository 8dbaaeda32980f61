"""`dodona select --rulebook vllm/…`: all words but dodona's own options belong to the system that the book
describes, and are read as that system reads them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from typer.core import TyperCommand

from dodona.oracle.config.flat import flat_names

_words: ContextVar[list[str] | None] = ContextVar("system_words", default=None)
_SHARED = ("config",)
"""Options that engines have too: there they are the system's."""


class SelectCommand(TyperCommand):
    """Sets the system's words aside before options are parsed: not all of its flags can be options."""

    # typer may bring a click of its own, so that neither's types can be named here
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse dodona's own options; leave the system's words to `system_words`."""
        _words.set(None)
        books = (_option(args, "--compare") or _option(args, "--rulebook") or "").split(",")
        if any(map(_reads_words, books)) and not {"--help", "-h"} & set(args):
            args, words = self._split(args)
            _words.set(words)
        return super().parse_args(ctx, args)

    def _split(self, args: list[str]) -> tuple[list[str], list[str]]:
        own: dict[str, bool] = {}
        for parameter in self.params:
            if parameter.name not in (*flat_names(), *_SHARED):
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


def system_words() -> list[str] | None:
    """The words of the command that are the system's; None where it has no command line of its own."""
    return _words.get()


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


def _reads_words(rulebook: str) -> bool:
    from dodona.oracle.errors import DodonaError
    from dodona.oracle.systems.books import load_rulebook
    from dodona.oracle.systems.registry import system_of

    rulebook = rulebook.strip()
    if not rulebook:
        return False
    try:
        system = load_rulebook(rulebook).system
    except DodonaError:
        # the command itself reports it; a bundled book's folder is named as its system
        system = rulebook.partition("/")[0]
    return system_of(system).reads_words
