"""A family of sets as independent choices: `all of A, B, and one of C or D` for what would be many lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def factors(sets: Sequence[Sequence[T]]) -> list[list[tuple[T, ...]]]:
    """Blocks of options such that picking one option of each block gives every set of the family once.

    One block of all sets where they are no such product.

    >>> factors([("a", "c"), ("a", "d")])
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
