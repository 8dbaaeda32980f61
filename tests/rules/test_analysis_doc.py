"""What docs/analysis.md shows of `rules check` and `rules diff` is what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dodona.oracle.analysis.check import known_regions
from dodona.oracle.analysis.properties import MEANINGS, broken_properties
from dodona.oracle.cli.app import app
from dodona.oracle.rulebook import bundled_rulebook

TEXT = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ dodona ([^\n]+)\n(.*?)\n```", TEXT, flags=re.DOTALL)
BOOK = re.findall(r"```yaml\n(rulebook:.*?)```", TEXT, flags=re.DOTALL)


def test_there_is_something_to_compare() -> None:
    assert [command.split()[:2] for command, _ in BLOCKS] == [
        ["rules", "check"],
        ["rules", "check"],
        ["rules", "diff"],
    ]
    assert len(BOOK) == 1


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_shown_output_is_real(
    command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast.yaml").write_text(BOOK[0])
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, command.split()).output.rstrip("\n") == shown


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
