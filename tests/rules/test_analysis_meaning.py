"""Regions of the space of facts mean what the reference evaluator says, point by point."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.oracle.analysis.baseline import baseline_of
from dodona.oracle.analysis.check import known_regions
from dodona.oracle.analysis.diagrams import FALSE, TRUE, Diagrams, TooEntangled
from dodona.oracle.analysis.regions import Regions
from dodona.oracle.analysis.source import sourced_text
from dodona.oracle.analysis.space import Space, sections_of
from dodona.oracle.decide.evaluate import firings, with_assumptions
from dodona.oracle.decide.outcome import decide
from dodona.oracle.language.conditions import comparisons
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks
from dodona.oracle.testing import RandomFacts
from tests.support.small_books import book_data, points, text_of


def regions_of(book: RuleBook, *, unknown: bool) -> Regions:
    compared = [c for rule in book.rules for c in comparisons(rule.when)]
    return Regions(Space(book.facts, compared, baseline_of(book), unknown=unknown), book)


def assert_same(regions: Regions, facts: dict[str, FactValue]) -> None:
    space, book = regions.space, regions.book
    point = space.assignment(facts)
    assert point is not None
    assert space.diagrams.contains(space.possible, point)
    fired = firings(book, with_assumptions(book, facts)[0])
    outcome = decide(book, fired)

    def here(region: int) -> bool:
        return space.diagrams.contains(region, point)

    assert {rule.id for rule in regions.rules.values() if here(rule.fires)} == {f.rule for f in fired}
    assert [kind for kind, r in regions.outcomes.kinds.items() if here(r)] == [outcome.kind]
    assert [by for by, r in regions.outcomes.decided.items() if here(r)] == [outcome.decided_by]
    assert {rule for rule, r in regions.outcomes.refused.items() if here(r)} == set(outcome.refusals)


@pytest.mark.parametrize("name", bundled_rulebooks())
def test_regions_of_bundled_books_are_what_the_reference_says(name: str) -> None:
    book = bundled_rulebook(name)
    regions = regions_of(book, unknown=True)
    draw = RandomFacts(book, seed=11)
    for _ in range(150):
        facts = draw()
        for fact in facts:
            if book.facts[fact].section and facts[fact] is False:
                facts[fact] = True
        for fact in facts:
            if any(facts[section] is None for section in sections_of(fact, book.facts)):
                facts[fact] = None
        assert_same(regions, facts)


@given(book_data(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_regions_of_random_books_are_what_the_reference_says(data: dict[str, object], unknown: bool) -> None:
    book = sourced_text(text_of(data)).book
    regions = regions_of(book, unknown=unknown)
    for i, facts in enumerate(points(book, unknown=unknown)):
        if i % 7 == 0:
            assert_same(regions, facts)


@given(book_data())
@settings(max_examples=40, deadline=None)
def test_a_witness_is_as_near_to_the_baseline_as_any_facts(data: dict[str, object]) -> None:
    book = sourced_text(text_of(data)).book
    regions = known_regions(book)
    space = regions.space
    nearest: dict[str, int] = {}
    for facts in points(book):
        kind = repr(decide(book, firings(book, facts)).kind)
        nearest[kind] = min(nearest.get(kind, 99), len(space.shown(facts)))
    for kind, region in regions.outcomes.kinds.items():
        found = space.witness(region)
        assert found is not None
        assert repr(decide(book, firings(book, found)).kind) == repr(kind)
        assert len(space.shown(found)) == nearest[repr(kind)]


@given(book_data())
@settings(max_examples=25, deadline=None)
def test_the_points_of_a_region_are_its_assignments(data: dict[str, object]) -> None:
    """`given` of all of a point's facts is the point: inside exactly the regions that contain it."""
    book = sourced_text(text_of(data)).book
    regions = known_regions(book)
    space, d = regions.space, regions.space.diagrams
    for i, facts in enumerate(points(book)):
        if i % 11:
            continue
        only = space.given(facts)
        for region in regions.outcomes.kinds.values():
            inside = d.both(only, region)
            assert (inside == only) is space.contains(region, facts)
            assert inside in (only, FALSE)


# --- diagrams -----------------------------------------------------------------------------------------------

SIZES = (2, 3, 2, 4)


def sets() -> st.SearchStrategy[frozenset[tuple[int, ...]]]:
    return st.frozensets(st.tuples(*(st.integers(0, n - 1) for n in SIZES)), max_size=20)


def built(d: Diagrams, members: frozenset[tuple[int, ...]]) -> int:
    return d.any_of(d.all_of(d.values(i, [v]) for i, v in enumerate(point)) for point in sorted(members))


ALL = frozenset((a, b, c, e) for a in range(2) for b in range(3) for c in range(2) for e in range(4))


@given(sets(), sets())
def test_diagrams_are_sets(left: frozenset[tuple[int, ...]], right: frozenset[tuple[int, ...]]) -> None:
    d = Diagrams(SIZES)
    a, b = built(d, left), built(d, right)
    assert d.both(a, b) == built(d, left & right)
    assert d.either(a, b) == built(d, left | right)
    assert d.less(a, b) == built(d, left - right)
    assert d.differ(a, b) == built(d, left ^ right)
    assert d.inside(a, b) is (left <= right)
    assert d.negate(a) == built(d, ALL - left)
    assert all(d.contains(a, point) is (point in left) for point in ALL)
    assert d.restrict(a, 1, 2) == built(d, frozenset(p for p in ALL if (p[0], 2, p[2], p[3]) in left))


@given(sets(), st.lists(st.integers(1, 9), min_size=7, max_size=7))
def test_the_cheapest_member_is_the_cheapest(members: frozenset[tuple[int, ...]], prices: list[int]) -> None:
    d = Diagrams(SIZES)
    rest = iter(prices)
    costs = [[0, *(next(rest) for _ in range(n - 1))] for n in SIZES]

    def cost(point: tuple[int, ...]) -> int:
        return sum(costs[i][v] for i, v in enumerate(point))

    found = d.cheapest(built(d, members), costs)
    if not members:
        assert found is None
    else:
        assert found in members
        assert cost(found) == min(map(cost, members))


def test_diagrams_have_a_bound() -> None:
    d = Diagrams([2] * 40, max_nodes=200)
    with pytest.raises(TooEntangled, match="200 nodes"):
        # pairs that lie far apart: the size doubles with each
        d.all_of(
            d.either(
                d.both(d.values(i, [0]), d.values(i + 20, [0])),
                d.both(d.values(i, [1]), d.values(i + 20, [1])),
            )
            for i in range(20)
        )
    assert d.either(FALSE, TRUE) == TRUE


def test_diagrams_go_as_deep_as_they_may() -> None:
    size = 2000
    d = Diagrams([2] * size)
    every = d.all_of(d.values(i, [1]) for i in range(size))
    some = d.any_of(d.values(i, [1]) for i in range(size))
    assert d.inside(every, some)
    assert d.both(every, d.negate(some)) == FALSE
    assert d.cheapest(every, [[0, 1]] * size) == (1,) * size
    assert d.restrict(some, size - 1, 1) == TRUE
    with pytest.raises(TooEntangled, match="more than 2000"):
        Diagrams([2] * (size + 1))
