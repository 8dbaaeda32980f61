"""Suffix lookup against counting all that occurs."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dodona.runners.drafting import suffix_lookup
from dodona.runners.drafting.prompt_lookup import PromptLookup
from dodona.runners.drafting.suffix_lookup import SuffixLookup

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def counted(lookup: SuffixLookup, tokens: list[int], most_occurrences: int = 40) -> list[int]:
    """What `lookup` finds, by counting what begins with each of the last tokens."""
    best: tuple[float, list[int]] = (0.0, [])
    for length in range(1, min(len(tokens), lookup.max_tree_depth - 1) + 1):
        suffix = tokens[-length:]
        begins = [i for i in range(len(tokens) - length) if tokens[i : i + length] == suffix]
        begins = begins[-most_occurrences:]
        drafts: list[int] = []
        total = 0
        most = min(
            lookup.num_speculative_tokens,
            int(lookup.max_spec_factor * length),
            lookup.max_tree_depth - length,
        )
        while begins and len(drafts) < most:
            wanted = [*suffix, *drafts]
            following = Counter(
                tokens[i + len(wanted)]
                for i in begins
                if i + len(wanted) < len(tokens) and tokens[i : i + len(wanted)] == wanted
            )
            if not following:
                break
            token, count = min(following.items(), key=lambda item: (-item[1], item[0]))
            if count / len(begins) < lookup.min_token_prob:
                break
            drafts.append(token)
            total += count
        if begins and total / len(begins) > best[0]:
            best = (total / len(begins), drafts)
    return best[1]


@given(
    TOKENS, st.integers(1, 6), st.integers(2, 9), st.sampled_from([0.5, 1.0, 2.5]),
    st.sampled_from([0.0, 0.3, 0.6, 1.0]),
)  # fmt: skip
def test_drafts_are_those_of_counting(
    tokens: list[int], count: int, depth: int, factor: float, least: float
) -> None:
    lookup = SuffixLookup(count, depth, factor, least)
    assert lookup.lookup(tokens) == counted(lookup, tokens)
    with mock.patch.object(suffix_lookup, "MAX_OCCURRENCES", 3):
        assert lookup.lookup(tokens) == counted(lookup, tokens, 3)


@given(TOKENS, st.integers(1, 6), st.integers(1, 60), st.integers(1, 4))
def test_prompt_lookup_finds_the_longest_occurrence(
    tokens: list[int], count: int, largest: int, smallest: int
) -> None:
    expected: list[int] = []
    for size in range(min(largest, len(tokens) - 1), smallest - 1, -1):
        after = [i + size for i in range(len(tokens) - size) if tokens[i : i + size] == tokens[-size:]]
        if after:
            begin = max((i for i in after if i + count <= len(tokens)), default=after[0])
            expected = tokens[begin : begin + count]
            break
    assert PromptLookup(count, largest, smallest).lookup(tokens) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 4, 9, 1, 2, 3], [4]),  # two of three went on with 4
        ([7, 8, 9, 1, 7, 8, 9], [1, 7, 8]),  # no more drafts than tokens that were found
        ([1, 2, 3], []),
    ],
)  # fmt: skip
def test_what_followed_most_often(tokens: list[int], expected: list[int]) -> None:
    assert SuffixLookup(8, 24, 1.0, 0.5).lookup(tokens) == expected
