"""How vLLM names the methods of speculative decoding."""

from __future__ import annotations

from typing import Final

_SIGNS: Final = (("eagle3", "eagle3"), ("eagle-", "eagle"), ("dflash", "dflash"), ("medusa", "medusa"))
"""Parts of a draft model's name, and the method that vLLM reads off them; the first one counts."""


def method_by_name(model: str) -> str | None:
    """The method that a draft model's name tells; None where it tells none.

    >>> method_by_name("someone/EAGLE3-Llama"), method_by_name("[ngram]"), method_by_name("draft")
    ('eagle3', 'ngram', None)
    """
    name = model.lower()
    if name in ("ngram", "[ngram]"):
        return "ngram"
    return next((method for sign, method in _SIGNS if sign in name), None)


def current_method(method: str) -> str:
    """A method under its current name. vLLM's older names for MTP name a model's family (`deepseek_mtp`);
    vLLM renames them before anything reads them.
    """
    return "mtp" if method.endswith("_mtp") else method
