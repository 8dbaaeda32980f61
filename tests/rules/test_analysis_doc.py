"""What docs/analysis.md shows of `rules check` and `rules diff` is what they print."""

from __future__ import annotations

import re
from pathlib import Path

from dodona.oracle.analysis.check import known_regions
from dodona.oracle.analysis.properties import MEANINGS, broken_properties
from dodona.oracle.systems.books import bundled_rulebook
from tests.support.analysis_doc import BLOCK, TARGET, refreshed

TEXT = TARGET.read_text(encoding="utf-8")


def test_shown_output_is_real() -> None:
    assert [command.split()[1] for command in BLOCK.findall(TEXT)] == ["check", "check", "diff"]
    assert refreshed(TEXT) == TEXT, "run: python -m tests.support.analysis_doc"


def test_every_property_is_documented_and_looked_at() -> None:
    found = {broken.property for broken in broken_properties(known_regions(bundled_rulebook("dodona")))}
    assert found == set(MEANINGS)
    assert all(f"| `{name}` |" in TEXT and f"`not-{name}`" in TEXT for name in MEANINGS)


def test_every_code_is_documented() -> None:
    folder = Path(__file__).parents[2] / "oracle" / "analysis"
    source = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
    codes = set(re.findall(r"Finding\(\s*\"([a-z-]+)\"", source))
    codes |= {"idle-condition", "idle-branch", "no-outcome", "two-outcomes"}
    assert len(codes) >= 15
    assert {code for code in codes if f"`{code}`" not in TEXT} == set()
