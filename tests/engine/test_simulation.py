"""Stories of the engine's simulation; benchmarks/simulation.py runs many more, and plants bugs."""

from __future__ import annotations

import pytest

from tests.support.simulation import run
from tests.support.stories import SITES, Arrival, HostMemory, Sizes, Sleep, Story, story_of

STORIES = 10_000
BLOCK = 500


@pytest.mark.parametrize("first", range(0, STORIES, BLOCK))
def test_stories(first: int) -> None:
    for seed in range(first, first + BLOCK):
        story = story_of(seed)
        try:
            run(story)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error}\n\n{story.test()}")


@pytest.mark.parametrize("site", SITES)
def test_each_pass_of_a_site_may_fail(site: str) -> None:
    """One story, in which the first, the second, … pass of a site fails, until there are no more."""
    arrivals = (
        Arrival(0, (1, 2, 3, 4, 5), 6, streaming=True),
        Arrival(0, (1, 2, 3, 4, 9), 4, seed=3, n=2),
        Arrival(2, (1, 2, 3), None, abort_turn=5),
        Arrival(3, (1, 2, 3, 4), 5, has_grammar=True),
    )
    sizes = Sizes(9, 3, 3, 6, True, True, 2, 0, HostMemory(6, 2, 0.0, 1))
    for number in range(200):
        story = Story(sizes, arrivals, (3,), (site, number))
        struck = run(story)
        if not struck:
            break
    assert number > 0
    assert not struck


def test_a_story_is_the_same_each_time_and_can_be_written_down() -> None:
    for seed in range(50):
        story = story_of(seed)
        assert story == story_of(seed)
        namespace: dict[str, object] = {
            "Arrival": Arrival, "HostMemory": HostMemory, "Sizes": Sizes, "Sleep": Sleep, "Story": Story,
            "run": run,
        }  # fmt: skip
        exec(story.test(), namespace)
        namespace["test_this_story"]()  # type: ignore[operator]
