"""Consequences in vLLM's books, and the machines that they and the rules read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.matrix import make_matrix
from dodona.oracle.analysis.matrix_formats import matrix_html, matrix_markdown
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.machine.assumed import MACHINES, assumed_machine
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks

BOOKS = [name for name in bundled_rulebooks() if name.startswith("vllm/")]
RELEASES = [
    "0.22.0",
    "0.23.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.32.0",
    "0.33.0",
]
WSL = Environment(has_triton=True, platform="cuda", wsl=True)
DENSE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}


@pytest.fixture
def qwen3(tmp_path: Path) -> str:
    path = tmp_path / "qwen3"
    path.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **DENSE}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def _select(release: str, command: str, *names: str) -> Verdict:
    return select_runner(command, rulebook=f"vllm/{release}", environment=assumed_machine(names))


def test_there_are_many_and_each_has_a_source() -> None:
    found = {c.id: c for name in BOOKS for c in bundled_rulebook(name).consequences}
    assert len(found) >= 40
    assert all(c.refs for c in found.values())
    for ref in itertools.chain.from_iterable(c.refs for c in found.values()):
        assert ref.startswith(("vllm/", "vllm#", "kvcached#")), ref


@pytest.mark.parametrize("name", BOOKS)
def test_examples_hold(name: str) -> None:
    for found in bundled_rulebook(name).consequences:
        for facts in found.examples.fires:
            assert evaluate(found.when, facts) is True, (found.id, facts)
        for facts in found.examples.passes:
            assert evaluate(found.when, facts) is False, (found.id, facts)


@pytest.mark.parametrize(
    ("consequence", "flags", "releases"),
    [
        ("cpu-offload-ignored", "--cpu-offload-gb 8", "0.22.0 0.25.1 0.27.1"),
        (
            "kv-offload-shared-by-runners",
            "--kv-transfer-config.kv_connector OffloadingConnector",
            "0.24.0 0.26.0",
        ),
        ("thinking-budget-refused", "--reasoning-parser qwen3", "0.23.0 0.27.1"),
        (
            "thinking-budget-not-enforced",
            "--reasoning-parser qwen3 --speculative-config.method mtp",
            "0.28.0 0.33.0",
        ),
        ("layerwise-nvtx-ignored", "--enable-layerwise-nvtx-tracing", "0.22.0 0.33.0"),
        ("cudagraph-metrics-ignored", "--cudagraph-metrics", "0.22.0 0.29.0"),
        ("stock-compile-without-graphs", "-cc.mode 1", "0.32.0 0.33.0"),
        ("async-scheduling-off-for-drafts", "--speculative-config.method suffix", "0.22.0 0.33.0"),
        ("draft-limits-length", "--speculative-config.method eagle", "0.33.0"),
        ("cascade-attention-removed", "--disable-cascade-attn", "0.32.0 0.33.0"),
    ],
)
def test_from_a_command_line(qwen3: str, consequence: str, flags: str, releases: str) -> None:
    reported = []
    for release in RELEASES:
        verdict = _select(release, f"vllm serve {qwen3} {flags}")
        reported += [release] * (consequence in {c.consequence for c in verdict.consequences})
    first, last = releases.split()[0], releases.split()[-1]
    assert (reported[0], reported[-1]) == (first, last)
    assert not any(c.consequence == consequence for c in _select(first, f"vllm serve {qwen3}").consequences)


def test_variables_of_the_command_line_are_facts(qwen3: str) -> None:
    command = f"VLLM_ATTENTION_BACKEND=FLASHINFER VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {qwen3}"
    verdict = _select("0.30.0", command)
    assert {c.consequence for c in verdict.consequences} == {"attention-backend-variable", "v1-removal"}
    assert "FLASHINFER" not in verdict.model_dump_json()
    assert not _select("0.30.0", f"vllm serve {qwen3}").consequences


def test_fail_on(qwen3: str) -> None:
    words = ["--rulebook", "vllm/0.27.0", "--assume", "h100", "vllm", "serve", qwen3, "--cpu-offload-gb", "1"]
    for level, code in (("error", 0), ("warning", 1), ("info", 1)):
        assert CliRunner().invoke(app, ["select", "--fail-on", level, *words]).exit_code == code
    compared = ["--compare", "vllm/0.27.0,vllm/0.28.0", *words[2:]]
    shown = " ".join(CliRunner().invoke(app, ["select", *compared]).stdout.split())
    assert "cpu-offload-ignored" in shown


def test_the_matrix_lists_them() -> None:
    made = make_matrix(bundled_rulebook("vllm/0.33.0"))
    assert len(made.notes) == len(bundled_rulebook("vllm/0.33.0").consequences)
    for text in (matrix_markdown(made), matrix_html(made), json.dumps(made.to_mapping())):
        assert all(note.consequence in text for note in made.notes)


# --- machines -----------------------------------------------------------------------------------------------

WSL_ISSUES = {
    43381: ("0.22.0", ""),
    47292: ("0.24.0", ""),
    47387: ("0.24.0", ""),
    50239: ("0.26.0", "--max-model-len 4096"),
    54652: ("0.29.0", "--tensor-parallel-size 2 --enforce-eager --max-model-len 2048"),
}
"""Reports of "UVA is not available" on WSL2, with the release nearest to the build, and their flags."""


@pytest.mark.parametrize("issue", sorted(WSL_ISSUES))
def test_the_reports_of_wsl(qwen3: str, issue: int) -> None:
    release, flags = WSL_ISSUES[issue]
    verdict = _select(release, f"vllm serve {qwen3} {flags}", "wsl2")
    assert (verdict.runner, verdict.decided_by) == ("v2", "preferred")
    assert [reason.rule for reason in verdict.refusals] == ["uva"]
    assert "UVA is not available" in verdict.refusals[0].because
    cured = _select(release, f"VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {qwen3} {flags}", "wsl2")
    assert (cured.runner, cured.refusals) == ("v1", ())
    if release >= "0.24.0":
        assert "VLLM_WSL2_ENABLE_PIN_MEMORY=1" in verdict.refusals[0].because
        cured = _select(release, f"VLLM_WSL2_ENABLE_PIN_MEMORY=1 vllm serve {qwen3} {flags}", "wsl2")
        assert (cured.runner, cured.refusals) == ("v2", ())


def test_wsl_starts_again_from_0_30(qwen3: str) -> None:
    verdict = _select("0.30.0", f"vllm serve {qwen3}", "wsl2")
    assert (verdict.runner, verdict.refusals) == ("v2", ())
    assert [c.consequence for c in verdict.consequences] == ["wsl-state-copies"]
    variable = _select("0.22.0", f"VLLM_WSL2_ENABLE_PIN_MEMORY=1 vllm serve {qwen3}", "wsl2")
    assert [reason.rule for reason in variable.refusals] == ["uva"]


def test_machines_by_name(tmp_path: Path) -> None:
    hopper = Environment(has_triton=True, platform="cuda")
    assert assumed_machine([]) == hopper
    assert assumed_machine(["h100"]) == dataclasses.replace(hopper, memory=80)
    assert assumed_machine(["wsl2"]) == WSL
    both = assumed_machine(["wsl2", "no-triton", "a100"])
    assert (both.wsl, both.has_triton, both.compute_capability) == (True, True, 80)
    assert assumed_machine(["a100", "no-triton"]).has_triton is False
    assert assumed_machine(["mi300x"]).platform == "rocm"
    for name in MACHINES:
        assumed_machine([name])
    file = tmp_path / "machine.yaml"
    file.write_text("platform: cuda\nhas_triton: true\ncompute_capability: 120\nwsl: true\n")
    assert assumed_machine([str(file)]).compute_capability == 120
    file.write_text("platform: cuda\nhas_tritom: true\n")
    with pytest.raises(ConfigError, match="has_tritom: no such field"):
        assumed_machine([str(file)])
    with pytest.raises(ConfigError, match="no such machine; did you mean 'wsl2'"):
        assumed_machine(["wls2"])


def test_what_this_machine_says(qwen3: str) -> None:
    environ = {"VLLM_WSL2_ENABLE_PIN_MEMORY": "1", "VLLM_API_KEY": "secret", "HOME": "/"}
    found = Environment.detect(environ, book=bundled_rulebook("vllm/0.33.0"))
    assert found.variables == ("VLLM_API_KEY", "VLLM_WSL2_ENABLE_PIN_MEMORY")
    assert found.wsl_pin_memory
    assert found.wsl is ("microsoft" in " ".join(os.uname()).lower())
    assert not Environment.detect({}, book=bundled_rulebook("vllm/0.33.0")).wsl_pin_memory
    early = f"VLLM_USE_V2_MODEL_RUNNER=1 vllm serve {qwen3}"
    assert [reason.rule for reason in _select("0.18.0", early, "wsl2").refusals] == ["uva"]


def test_assume_on_the_command_line(qwen3: str) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(
            app, ["select", "--rulebook", "vllm/0.24.0", *words, "vllm", "serve", qwen3]
        )

    assert run("--assume", "wsl2").exit_code == 3
    assert "VLLM_WSL2_ENABLE_PIN_MEMORY=1" in " ".join(run("--assume", "wsl2").stdout.split())
    assert run("--assume", "h100").exit_code == 0
    assert json.loads(run("--json", "--assume", "no-triton").stdout)["runner"] == "v1"
    assert run("--assume", "moon").exit_code == 2
