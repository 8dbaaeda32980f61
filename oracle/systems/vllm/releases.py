"""Releases of vLLM by number."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"v?(\d{1,6})(?:\.(\d{1,6}))?(?:\.(\d{1,6}))?")


def release_number(release: str) -> tuple[int, int, int] | None:
    """(0, 25, 1) of "0.25.1", "v0.25.1" or "0.25.1rc2"; None for what is no number."""
    found = _NUMBER.match(release)
    return (int(found[1]), int(found[2] or 0), int(found[3] or 0)) if found else None


def release_of(book: str) -> str | None:
    """ "0.25.1" of a book's name "vllm/0.25.1"; None for a name without a release."""
    release = book.rpartition("/")[2]
    return release if release_number(release) is not None else None


def nearest_release(release: str, known: Iterable[str]) -> str | None:
    """The known release nearest to `release`: the last one up to it, else the first; None for no number."""
    wanted = release_number(release)
    numbered = sorted((number, name) for name in known if (number := release_number(name)) is not None)
    if wanted is None or not numbered:
        return None
    return max((entry for entry in numbered if entry[0] <= wanted), default=numbered[0])[1]


def nearest_book(name: str, known: Iterable[str]) -> str:
    """`The nearest release is 'vllm/0.33.0'.` for a book that doesn't exist; "" for a name without a release.

    known: all books; those in the folder of `name` count. Compared by number, since by letters 0.34.0 is as
    near to 0.24.0 as to 0.33.0.
    """
    folder, slash, release = name.rpartition("/")
    prefix = folder + slash
    found = nearest_release(release, [b.removeprefix(prefix) for b in known if b.startswith(prefix)])
    return f"The nearest release is '{prefix}{found}'." if found is not None else ""
