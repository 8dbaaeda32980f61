"""Shell text as simple commands: words without quotes, and the environment that each command is given.

A small part of POSIX shell: quoting, comments, line continuations, `;`, `&&`, `||`, `|`, `&`, redirections,
here-documents (skipped), `NAME=value`, `export`, `unset` and `$NAME`, `${NAME}`, `${NAME:-default}`. What
only a running shell knows (`$(…)`, positional parameters, variables that nothing sets) stays in the word as
it is written. Nothing is executed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dodona.oracle.errors import ConfigError

MAX_TEXT: Final = 1 << 20
"""Most characters of a text, and of a word after its variables are replaced."""

MAX_VARIABLES: Final = 2000
"""Most variables that a text sets."""

MAX_WORDS: Final = 2000
"""Most words of one command."""

_OPERATORS: Final = (";;", "&&", "||", "|&", "&", ";", "|", "(", ")", "\n")
_OPERATOR = re.compile("|".join(re.escape(operator) for operator in _OPERATORS))
_REDIRECTION = re.compile(r"\d*(<<<|<<-?|<&|>&|&>>|&>|>>|>\||<>|<|>)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)\Z", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-=?+])([^}$]*))?\})")
_KEYWORDS: Final = frozenset(
    [
        "if",
        "then",
        "elif",
        "else",
        "fi",
        "do",
        "done",
        "while",
        "until",
        "for",
        "case",
        "esac",
        "{",
        "}",
        "!",
        "time",
    ]
)
UNRESOLVED = re.compile(r"\$[\w{(@*#?!]|`|\{\{")
"""What is left of a value that only a running shell or a template engine knows."""


_NAMED = re.compile(r"\$(\w+|\{\w+[^}]*\}|[@*#?!]|\(\w*)?")


def unresolved_part(text: str) -> str:
    """What of a text only a running shell or a template engine knows: never the rest, which may be secret."""
    found = _NAMED.search(text)
    return found[0][:40] if found is not None else "a template's value"


@dataclass(frozen=True)
class SimpleCommand:
    """One command: its words, the environment that is set for it, and the line of its first word."""

    words: tuple[str, ...]
    environ: Mapping[str, str | None]
    """Variables that the text exports to it or sets before it; None: unset there."""
    line: int


@dataclass(frozen=True)
class _Word:
    text: str
    quoted: bool
    """Some part of it is quoted."""
    line: int
    raw: bool = False
    """It is an operator."""
    parts: tuple[tuple[str, bool], ...] = ()
    """Pieces of its text, and whether variables in them are replaced."""


class TooLarge(ConfigError):
    """A text, or what it grows to, is larger than what is looked at."""


class Work:
    """What may still be done for the starts of one file: texts hold texts for other shells, and variables
    and anchors repeat them."""

    MAX_WORDS: Final = 50_000
    """Words, operators, entries of lists and of environments."""
    MAX_CHARACTERS: Final = 2 * MAX_TEXT
    """Characters that are split into words again, or that variables are replaced by."""

    def __init__(self) -> None:
        self._words, self._characters = self.MAX_WORDS, self.MAX_CHARACTERS

    def take_words(self, count: int = 1) -> None:
        """Raise TooLarge where there were too many."""
        self._words -= count
        if self._words < 0:
            raise TooLarge(f"has more than {self.MAX_WORDS} words, those that are repeated counted again")

    def take(self, text: str) -> str:
        """A text that is split, or put into a word. Raises TooLarge where all are too long."""
        self._characters -= len(text)
        if self._characters < 0:
            raise TooLarge(f"has texts and values of variables of more than {self.MAX_CHARACTERS} characters")
        return text


def check_words(words: Sequence[str]) -> None:
    """Raise TooLarge for a command of more than `MAX_WORDS` words, of which each may be a command's first."""
    if len(words) > MAX_WORDS:
        raise TooLarge(f"a command has {len(words)} words, more than {MAX_WORDS}")


def simple_commands(
    text: str, environ: Mapping[str, str | None] | None = None, work: Work | None = None
) -> Iterator[SimpleCommand]:
    """The commands of a shell text in order.

    environ: what is exported to all of them. work: what is left where this text is inside another. Raises
    ConfigError for a quotation mark that is not closed, and TooLarge for more words, characters or variables
    than are looked at.
    """
    if len(text) > MAX_TEXT:
        raise TooLarge(f"the command is longer than {MAX_TEXT} characters")
    work = work or Work()
    exported: dict[str, str | None] = dict(environ or {})
    variables: dict[str, str | None] = dict(exported)
    for words in list(_split(_tokens(text, work))):
        if len(variables) > MAX_VARIABLES or len(exported) > MAX_VARIABLES:
            raise TooLarge(f"the text sets more than {MAX_VARIABLES} variables")
        before: dict[str, str | None] = {}
        expanded = [(_expand(word, variables, work), word) for word in words]
        while expanded and (found := _ASSIGNMENT.match(expanded[0][0])) and _is_assignment(expanded[0][1]):
            before[found[1]] = found[2]
            expanded.pop(0)
        while expanded and not expanded[0][1].quoted and expanded[0][0] in _KEYWORDS:
            expanded.pop(0)
            while (
                expanded and (found := _ASSIGNMENT.match(expanded[0][0])) and _is_assignment(expanded[0][1])
            ):
                before[found[1]] = found[2]
                expanded.pop(0)
        plain = [text for text, _ in expanded]
        if not plain:
            variables.update(before)
            exported.update({name: value for name, value in before.items() if name in exported})
            continue
        if plain[0] in ("export", "declare", "typeset", "readonly") and "$" not in plain[0]:
            for word in plain[1:]:
                found = _ASSIGNMENT.match(word)
                if found:
                    exported[found[1]] = variables[found[1]] = found[2]
                elif word in variables:
                    exported[word] = variables[word]
            continue
        if plain[0] == "unset":
            for word in plain[1:]:
                exported[word] = variables[word] = None
            continue
        # an unquoted variable is several words where its value has blanks
        split = tuple(piece for text, word in expanded for piece in _fields(text, word))
        check_words(split)
        yield SimpleCommand(split, {**exported, **before}, words[0].line)


def _is_assignment(word: _Word) -> bool:
    head = word.parts[0] if word.parts else ("", True)
    return _ASSIGNMENT.match(head[0]) is not None


def _fields(text: str, word: _Word) -> Sequence[str]:
    if word.quoted or not any(_VARIABLE.search(part) for part, live in word.parts if live):
        return (text,)
    return text.split() if text.strip() else ()


def _expand(word: _Word, variables: Mapping[str, str | None], work: Work) -> str:
    if not any(live for _, live in word.parts):
        return word.text

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        known = variables.get(name)
        if known is not None and (known or not (match[3] or "").startswith(":")):
            return match[4] or "" if (match[3] or "").endswith("+") else known
        if match[3] in (":-", "-", ":=", "="):
            return match[4].strip("\"'")
        if (match[3] or "").endswith("+") or (name in variables and known is None):
            return ""
        return match[0]

    # no second round: a value that holds a variable's name was written so
    found = "".join(
        _VARIABLE.sub(lambda match: work.take(value(match)), part) if live and "$" in part else part
        for part, live in word.parts
    )
    if len(found) > MAX_TEXT:
        raise TooLarge(f"a word of the command is longer than {MAX_TEXT} characters")
    return found


def _split(tokens: Iterable[_Word]) -> Iterator[list[_Word]]:
    """Words of one command each; redirections are left out."""
    words: list[_Word] = []
    skip = False
    for token in tokens:
        if token.raw and token.text not in _OPERATORS:
            skip = True
        elif token.raw:
            if words:
                yield words
            words, skip = [], False
        elif skip:
            skip = False
        else:
            words.append(token)
            if len(words) > MAX_WORDS:
                raise TooLarge(f"the command of line {words[0].line} has more than {MAX_WORDS} words")
    if words:
        yield words


def _tokens(text: str, work: Work) -> Iterator[_Word]:
    i, line, size = 0, 1, len(text)
    heredocs: list[tuple[str, bool]] = []
    ends = True
    while i < size:
        c = text[i]
        if c == "\n":
            if not ends:  # of empty lines nothing is kept
                yield _Word("\n", False, line, raw=True)
            ends = True
            i, line = i + 1, line + 1
            for delimiter, tabs in heredocs:
                i, passed = _after_heredoc(text, i, delimiter, tabs)
                line += passed
            heredocs.clear()
            continue
        if c in " \t\r":
            i += 1
            continue
        if text.startswith("\\\n", i) or text.startswith("\\\r\n", i):
            i, line = text.index("\n", i) + 1, line + 1
            continue
        if c == "#":
            end = text.find("\n", i)
            i = size if end < 0 else end
            continue
        ends = False
        work.take_words()
        redirection = _REDIRECTION.match(text, i)
        if redirection:
            operator = redirection[1]
            i = redirection.end()
            if operator in ("<<", "<<-"):
                mark = re.compile(r"[ \t]*(['\"\\]?)([\w.-]+)\1?").match(text, i)
                if mark:
                    heredocs.append((mark[2], operator == "<<-"))
                    i = mark.end()
                    continue
            yield _Word(operator, False, line, raw=True)
            continue
        found = _OPERATOR.match(text, i)
        if found is not None:
            yield _Word(found[0], False, line, raw=True)
            i = found.end()
            continue
        word, i, passed = _read_word(text, i, line)
        yield word
        line += passed


_BLANKS = re.compile(r"[ \t\r\n]+")
_PIECE = re.compile(
    r"""[^ \t\r\n'"\\]++|'(?P<plain>[^']*+)'|"(?P<double>(?:[^"\\]++|\\.)*+)"|\\(?P<escaped>.)""", re.DOTALL
)
_ESCAPED = re.compile(r'\\(["\\])')


def split_words(text: str, work: Work) -> list[str]:
    """The words of a text without a shell's operators, as `shlex.split` has them, whose time grows with the
    square of a word's length.

    Raises TooLarge, and ConfigError for a quotation mark that is not closed.
    """
    work.take(text)
    words: list[str] = []
    parts: list[str] = []
    i, size = 0, len(text)
    while i < size:
        blanks = _BLANKS.match(text, i)
        if blanks is None:
            piece = _PIECE.match(text, i)
            if piece is None:
                raise ConfigError("the command line can't be split into words: No closing quotation")
            kind = piece.lastgroup
            found = piece[kind or 0]
            parts.append(_ESCAPED.sub(r"\1", found) if kind == "double" else found)
            i = piece.end()
        else:
            i = blanks.end()
        if parts and (blanks is not None or i == size):
            work.take_words()
            words.append("".join(parts))
            parts = []
    return words


def _after_heredoc(text: str, i: int, delimiter: str, tabs: bool) -> tuple[int, int]:
    passed = 0
    while i < len(text):
        end = text.find("\n", i)
        row = text[i:] if end < 0 else text[i:end]
        i = len(text) if end < 0 else end + 1
        passed += end >= 0
        if (row.lstrip("\t") if tabs else row).rstrip("\r") == delimiter:
            break
    return i, passed


_PLAIN = re.compile(r"[^ \t\r\n\\'\"`$;&|<>()]+")


def _read_word(text: str, i: int, line: int) -> tuple[_Word, int, int]:
    parts: list[tuple[str, bool]] = []
    quoted, passed, size = False, 0, len(text)
    while i < size:
        plain = _PLAIN.match(text, i)
        if plain:
            parts.append((plain[0], False))
            i = plain.end()
            continue
        c = text[i]
        if c == "\\":
            if text.startswith("\\\n", i):
                i, passed = i + 2, passed + 1
                continue
            if text.startswith("\\\r\n", i):
                i, passed = i + 3, passed + 1
                continue
            parts.append((text[i + 1 : i + 2], False))
            i, quoted = i + 2, True
        elif c == "'":
            end = text.find("'", i + 1)
            if end < 0:
                raise ConfigError("the command line can't be split into words: No closing quotation")
            parts.append((text[i + 1 : end], False))
            passed += text.count("\n", i, end)
            i, quoted = end + 1, True
        elif c == '"':
            inside, i, lines = _double_quoted(text, i + 1)
            parts += inside
            passed, quoted = passed + lines, True
        elif c in "$`":
            taken = _substitution(text, i)
            parts.append((text[i:taken], True))
            passed += text.count("\n", i, taken)
            i = taken
        else:
            break
    merged = _merged(parts) if len(parts) > 1 else parts
    return _Word("".join(part for part, _ in merged), quoted, line, parts=tuple(merged)), i, passed


def _merged(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    groups = itertools.groupby(parts, key=lambda part: part[1])
    return [("".join(text for text, _ in group), live) for live, group in groups]


def _double_quoted(text: str, i: int) -> tuple[list[tuple[str, bool]], int, int]:
    parts: list[tuple[str, bool]] = []
    start = i
    while i < len(text):
        c = text[i]
        if c == '"':
            return parts, i + 1, text.count("\n", start, i)
        if c == "\\" and text[i + 1 : i + 2] in ("$", "`", '"', "\\", "\n"):
            parts.append(("" if text[i + 1] == "\n" else text[i + 1], False))
            i += 2
        elif c in "$`":
            end = _substitution(text, i)
            parts.append((text[i:end], True))
            i = end
        else:
            end = i + 1
            while end < len(text) and text[end] not in '"\\$`':
                end += 1
            parts.append((text[i:end], False))
            i = end
    raise ConfigError("the command line can't be split into words: No closing quotation")


def _substitution(text: str, i: int) -> int:
    """The end of what begins with `$` or a backtick at `i`."""
    if text[i] == "`":
        end = text.find("`", i + 1)
        return len(text) if end < 0 else end + 1
    following = text[i + 1 : i + 2]
    if following in ("(", "{"):
        closing = ")" if following == "(" else "}"
        depth, end = 0, i + 1
        while end < len(text):
            depth += (text[end] == following) - (text[end] == closing)
            end += 1
            if depth == 0:
                return end
        return len(text)
    name = re.compile(r"\$(\w+|[@*#?!$-])?").match(text, i)
    return i + 1 if name is None else max(name.end(), i + 1)
