"""A family of sets as independent choices, which take fewer lines than the sets: `A, and one of B or C`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def independent_choices(sets: Sequence[Sequence[T]]) -> list[list[tuple[T, ...]]]:
    """Choices such that taking one option of each gives every set of the family once.

    Each choice is a list of options, each option a tuple of elements. Where the family is no such product,
    the only choice is among all its sets.

    >>> independent_choices([("a", "c"), ("a", "d")])
    [[('a',)], [('c',), ('d',)]]
    """
    family = [frozenset(chosen) for chosen in sets]
    elements = list(dict.fromkeys(element for chosen in sets for element in chosen))
    if len(family) <= 1:
        return [[(element,)] for element in elements]
    blocks: list[list[T]] = []
    for element in elements:
        joined = [b for b in blocks if any(_dependent(family, element, other) for other in b)]
        blocks = [b for b in blocks if b not in joined] + [[*(e for b in joined for e in b), element]]
    blocks.sort(key=lambda block: min(map(elements.index, block)))
    options = [_options(sets, set(block)) for block in blocks]
    product = 1
    for choices in options:
        product *= len(choices)
    return options if product == len(family) else [[tuple(chosen) for chosen in sets]]


def _dependent(family: Sequence[frozenset[T]], a: T, b: T) -> bool:
    with_a = sum(a in chosen for chosen in family)
    with_b = sum(b in chosen for chosen in family)
    both = sum(a in chosen and b in chosen for chosen in family)
    return both * len(family) != with_a * with_b


def _options(sets: Sequence[Sequence[T]], block: set[T]) -> list[tuple[T, ...]]:
    return list(dict.fromkeys(tuple(e for e in chosen if e in block) for chosen in sets))
