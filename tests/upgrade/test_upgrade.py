"""`dodona upgrade`: deployments are found in all kinds of files, compared, and reported without secrets."""

# ruff: noqa: E501 (samples of files in one line each)

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.architectures import typical_model
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.assumed import assumed_machine
from dodona.oracle.models.known_models import known_architectures
from dodona.oracle.models.known_names import FAMILIES, architecture_of, is_quantized_name
from dodona.oracle.select import select_runner, verdict_of
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.registry import system_of
from dodona.oracle.systems.vllm.shell import Work, split_words
from dodona.oracle.upgrade.comparison import Finding, Unknown, books_between, compare
from dodona.oracle.upgrade.discovery import Candidate, LeftOut, candidates
from dodona.oracle.upgrade.documents import MAX_STEPS, parse_documents, walk
from dodona.oracle.upgrade.places import Found, starts
from dodona.oracle.upgrade.report import Report, as_data, as_markdown, as_sarif, as_text
from dodona.oracle.upgrade.sentinel import examine

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "deployments"
H100 = assumed_machine(["h100"])


def _found(name: str, text: str) -> list[Found]:
    kinds = {".sh": "shell", ".yaml": "yaml", ".service": "systemd"}
    kind: Any = kinds.get(Path(name).suffix, "dockerfile")
    return list(starts(Candidate(name, kind, text)))


def _examine(*paths: Path, first: str = "0.24.0", last: str = "0.33.0", machine: str = "h100") -> Report:
    return examine(
        map(str, paths), first=first, last=last, machine=assumed_machine([machine]), machine_name=machine
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return _examine(EXAMPLES)


def test_the_examples(report: Report) -> None:
    assert report.unknown == report.left_out == ()
    found = {(Path(f.path).name, f.model.rpartition("/")[2]): f for f in report.findings}
    runners = {key: (f.before.runner, f.after.runner, f.first_changed) for key, f in found.items()}
    assert runners == {
        ("Dockerfile", "Llama-3.1-70B-Instruct"): ("v2", "v2", None),
        ("compose.yaml", "Mistral-7B-Instruct-v0.3"): ("v2", "v2", None),
        ("compose.yaml", "gpt-oss-120b"): ("v1", "v2", "0.29.0"),
        ("kubernetes.yaml", "AI21-Jamba-1.5-Mini"): ("v1", "v2", "0.29.0"),
        ("kubernetes.yaml", "Qwen3-8B"): ("v1", "v2", "0.32.0"),
        ("recipe.yaml", "gemma-2-9b-it"): ("v1", "v2", "0.32.0"),
        ("serve.sh", "Qwen3-30B-A3B-FP8"): ("v1", "v1", None),
        ("serve.sh", "Llama-3.1-8B-Instruct"): ("v1", "v1", None),
        ("vllm.service", "DeepSeek-V3"): ("v1", "v2", "0.29.0"),
    }
    assert "cpu-offload-ignored" in found["Dockerfile", "Llama-3.1-70B-Instruct"].gone_consequences
    assert found["vllm.service", "DeepSeek-V3"].keep == "Environment=VLLM_USE_V2_MODEL_RUNNER=0"
    assert any("EnvironmentFile" in text for text in found["vllm.service", "DeepSeek-V3"].unread)


def test_what_is_written_to_keep_the_runner_keeps_it(report: Report) -> None:
    kept = [finding for finding in report.findings if finding.keep is not None]
    assert len(kept) >= 4
    for finding in kept:
        text = Path(finding.path).read_text(encoding="utf-8")
        (found,) = (f for f in _found(finding.path, text) if f.line == finding.line)
        words = ["env", "VLLM_USE_V2_MODEL_RUNNER=0", "vllm", "serve", *found.invocation.arguments]
        book = load_rulebook("vllm/0.33.0")
        model = typical_model(finding.architecture)
        verdict = verdict_of(system_of("vllm").deploy(words, H100, book, model=model), trusted=True)
        assert (verdict.runner, verdict.refusals) == (finding.before.runner, ())


def test_a_start_that_stops_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("vllm serve Qwen/Qwen3-8B\nvllm serve Qwen/Qwen2.5-7B-Instruct\n")
    report = _examine(tmp_path, first="0.22.0", last="0.24.0", machine="wsl2")
    first, second = report.findings
    assert (first.before.starts, first.after.starts, first.changes) == (False, False, ())
    assert (second.before.starts, second.changes) == (True, ())
    report = _examine(tmp_path, first="0.24.0", last="0.25.0", machine="wsl2")
    changed = report.findings[1]
    assert (changed.before.runner, changed.after.runner, changed.after.starts) == ("v1", "v2", False)
    assert changed.changes == ("runner", "start", "consequence")[:2]
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in (changed.keep or "")
    report = _examine(tmp_path, first="0.29.0", last="0.30.0", machine="wsl2")
    assert [f.changes for f in report.findings] == [("start", "consequence")] * 2


# --- kinds of files -----------------------------------------------------------------------------------------

DOCKERFILES = {
    'FROM vllm/vllm-openai:v0.24.0\nENV A=1 VLLM_USE_V2_MODEL_RUNNER="0"\nCMD ["--model", "m"]\n': ("--model", "m"),
    'FROM a AS b\nFROM vllm/vllm-openai\nENTRYPOINT ["vllm", "serve"]\nCMD ["m", \\\n  "-tp", "2"]\n': ("m", "-tp", "2"),
    "ARG V=v0.24.0\nFROM vllm/vllm-openai:$V\nENTRYPOINT exec vllm serve m --port $PORT\n": ("m", "--port", "$PORT"),
    'FROM python:3.12 AS base\nENV M=x\nFROM base\nCMD vllm serve ${M}\n': ("x",),
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(DOCKERFILES))
def test_dockerfiles(text: str) -> None:
    (found,) = _found("Dockerfile", text)
    assert found.invocation.arguments == DOCKERFILES[text]
    assert ("VLLM_USE_V2_MODEL_RUNNER" in found.invocation.environ) is ("RUNNER" in text)
    assert found.invocation.release == ("0.24.0" if "0.24" in text else None)


def test_dockerfiles_that_start_something_else() -> None:
    assert not _found("Dockerfile", 'FROM vllm/vllm-openai\nENTRYPOINT ["vllm", "bench"]\nCMD ["serve"]\n')
    assert not _found("Dockerfile", "FROM python\nRUN vllm serve m & sleep 3\n")


YAML = {
    "services: {a: {image: 'vllm/vllm-openai', command: '--model m -tp 2', environment: [K=v]}}": "compose",
    "services: {a: {image: 'vllm/vllm-openai:v0.24.0', command: [./m, -tp, '2']}}": "compose",
    "services: {a: {image: x, entrypoint: [vllm, serve], command: [m, -tp, '2']}}": "compose",
    "x: &x {image: 'vllm/vllm-openai:v1', command: [--model, m, -tp, '2']}\nservices: {a: {<<: *x}}": "compose",
    "kind: Pod\nspec: {containers: [{name: c, image: 'vllm/vllm-openai', args: [--model, m, -tp, '2']}]}": "kubernetes",
    "kind: Pod\nspec: {containers: [{image: x, command: [sh, -c], args: ['vllm serve m -tp 2']}]}": "kubernetes",
    "kind: Pod\nspec: {containers: [{image: 'a/vllm', env: [{name: M, value: m}], args: [--model, $(M), -tp, '2']}]}": "kubernetes",
    "image: {repository: vllm/vllm-openai, tag: v0.24.0}\nargs: ['--model=m', -tp, '2']": "kubernetes",
    "kind: InferenceService\nspec: {predictor: {model: {modelFormat: {name: vLLM}, storageUri: 'hf://m', args: [-tp, '2']}}}": "kserve",
    "kind: InferenceService\nspec: {predictor: {model: {modelFormat: {name: huggingface}, args: [--model_id=m, -tp=2, --model_name=z]}}}": "kserve",
    "servingEngineSpec: {modelSpec: [{name: a, repository: vllm/vllm-openai, tag: v0.24.0, modelURL: m, vllmConfig: {tensorParallelSize: 2}}]}": "helm",
    "model: m\ntensor-parallel-size: 2": "recipe",
    "jobs: {a: {steps: [{run: 'vllm serve m -tp 2 &'}]}}": "recipe",
    "resources: {}\nrun: |\n  export A=1\n  vllm serve m \\\n    -tp 2\n": "recipe",
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(YAML))
def test_yaml(text: str) -> None:
    (found,) = _found("a.yaml", text)
    assert found.place == YAML[text]
    report = compare(found, books_between("0.24.0", "0.25.0"), H100)
    assert isinstance(report, Unknown)
    assert "not known by its name" in report.reason
    words = " ".join(found.invocation.arguments).replace("=", " ")
    assert "tensor-parallel-size 2" in words or "-tp 2" in words
    assert {"m", "./m"} & set(words.split())


def test_templates_of_helm() -> None:
    text = """
{{- if .Values.enabled }}
kind: Deployment
spec:
  containers:
    - image: "vllm/vllm-openai:{{ .Values.tag }}"
      args: ["--model", "Qwen/Qwen3-8B", "--tensor-parallel-size", {{ .Values.tp }}]
{{- end }}
"""
    (found,) = _found("a.yaml", text)
    compared = compare(found, books_between("0.24.0", "0.33.0"), H100)
    assert isinstance(compared, Finding)
    assert compared.unread == ("--tensor-parallel-size: $TEMPLATE is not known here",)


# --- bounds and secrets -------------------------------------------------------------------------------------


def test_anchors_do_not_grow() -> None:
    rows = ["a0: &a0 {image: vllm, args: [--model, m]}"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    documents = parse_documents("\n".join(rows), where="x")
    assert sum(1 for _ in walk(documents)) == MAX_STEPS
    assert len(_found("a.yaml", "\n".join(rows))) == 1
    merges = ["a0: &a0 {k: v}"] + [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 50)
    ]
    assert parse_documents("\n".join(merges), where="x")


def test_long_texts_are_read_in_one_pass() -> None:
    many = 8_000
    shells = [
        "${a-" * many,
        '"' + "\\\\$a" * many + '"',
        "$(" * many,
        "`" * many,
        "a=1;" * many,
        "'" * many,
        "<<A\n" * many,
    ]
    for text in shells:
        with contextlib.suppress(ConfigError):
            assert _found("a.sh", f"docker run {'vllm' * 300}! x; {text}") == []
    yamls = ["{{" * many, "a: {{ x " * many, "model: m\ndtype: " + "[" * 30 + "x" + "]" * 30]
    bomb = [
        "model: m",
        "seed: &a0 [x, x, x]",
        *(f"k{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30)),
    ]
    for text in [
        *yamls,
        "\n".join(bomb),
        "services:\n" + "".join(f" s{i}: &s {{image: vllm, x: *s}}\n" for i in range(3000)),
    ]:
        with contextlib.suppress(ConfigError):
            _found("a.yaml", text)


GROWING = {
    "words": ("a.sh", "vllm serve m " + "x " * 3_000, "more than 2000 words"),
    "words of a launcher": ("Dockerfile", "FROM vllm\nCMD " + json.dumps(["a"] * 3_000), "3000 words"),
    "words of all commands": ("a.sh", "a b\n" * 30_000, "more than 50000 words"),
    "values in a word": ("a.sh", f"A={'x' * 100_000}\nvllm serve {'$A' * 1_000}", "more than 2097152 characters"),
    "a value that doubles": ("Dockerfile", "FROM vllm\nENV A=xx\n" + "ENV A=$A$A\n" * 60, "more than 2097152 characters"),
    "shells in a shell": ("a.sh", f"A='{'vllm serve m;' * 500}'\n" + 'sh -c "$A"\n' * 100, "more than"),
    "variables": ("a.service", "".join(f"Environment=A{i}=1\n" for i in range(3_000)), "more than 2000 variables"),
    "starts": ("a.sh", "vllm serve m\n" * 1_001, "more than 1000 starts"),
    "an anchored environment": ("a.yaml", f"e: &e [{'{name: A, value: x}, ' * 1_000}]\nc:\n" + "- {image: vllm/vllm-openai, args: [--x], env: *e}\n" * 100, "more than 50000 words"),
    "an anchored text": ("a.yaml", f"t: &t {'a' * 100_000}\nc:\n" + "- {image: vllm/vllm-openai, args: *t}\n" * 30, "more than 2097152 characters"),
    "a variable in arguments": ("a.yaml", f"image: vllm/x\nenv: [{{name: A, value: {'x' * 100_000}}}]\nargs: ['{'$(A)' * 1_000}']", "more than 2097152 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", GROWING)
def test_what_grows_is_left_out_with_the_reason(case: str, tmp_path: Path) -> None:
    name, text, reason = GROWING[case]
    (tmp_path / name).write_text(text + "\n# vllm\n")
    (tmp_path / "good.sh").write_text("vllm serve Qwen/Qwen3-0.6B\n")
    report = _examine(tmp_path)
    assert [Path(left.path).name for left in report.left_out] == [name]
    assert reason in report.left_out[0].reason
    assert [Path(finding.path).name for finding in report.findings] == ["good.sh"]


@settings(max_examples=500)
@given(st.text(st.sampled_from("ab$;#|('\"\\ \t\n"), max_size=12))
def test_words_are_those_of_shlex(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        expected = None
    try:
        found = split_words(text, Work())
    except ConfigError:
        found = None
    assert found == expected


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "a: &a [*a, vllm]", "a: !!python/object/apply:os.system [vllm]", "{" * 70, "? [a]\n: vllm", "\t vllm:", "a: *b", "<<: vllm"],
)  # fmt: skip
def test_hostile_yaml(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert _found("a.yaml", text) == []


@given(st.recursive(st.text(max_size=6) | st.none() | st.integers(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["image", "args", "command", "env", "services", "modelFormat", "modelURL", "vllmConfig", "model", "name", "<<", "a"]), x, max_size=4), max_leaves=12))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_yaml_is_read(value: Any) -> None:
    for found in _found("a.yaml", yaml.safe_dump({"image": "vllm/vllm-openai", "x": value})):
        assert isinstance(compare(found, books_between("0.24.0", "0.25.0"), H100), (Finding, Unknown))


def test_files_in_bounds(tmp_path: Path) -> None:
    (tmp_path / "big.sh").write_bytes(b"# vllm\n" * 200_000)
    (tmp_path / "data.yaml").write_bytes(b"- 1\n" * 300_000 + b"- vllm serve m\n")
    (tmp_path / "latin.sh").write_bytes(b"vllm serve m # \xe9\n")
    (tmp_path / "start").write_text("#!/bin/sh\nvllm serve m\n")
    (tmp_path / "other.txt").write_text("vllm serve m\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.sh").write_text("vllm serve m\n")
    found = list(candidates([str(tmp_path)]))
    assert [type(one) for one in found] == [LeftOut, LeftOut, LeftOut, Candidate]
    assert [Path(one.path).name for one in found] == ["big.sh", "data.yaml", "latin.sh", "start"]
    with pytest.raises(ConfigError, match="no such file"):
        list(candidates([str(tmp_path / "none")]))


SECRET = "hf_SeCrEt123"


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    files = {
        "a.sh": f"HF_TOKEN={SECRET} vllm serve Qwen/Qwen3-8B --api-key {SECRET} --hf-token={SECRET}\n"
        f"vllm serve Qwen/Qwen3-8B -tp {SECRET}\n"
        f"vllm serve Qwen/Qwen3-8B {SECRET}\n"
        f"vllm serve Qwen/Qwen3-8B --kv-transfer-config '{{\"token\": \"{SECRET}$X\"}}'\n"
        f"vllm serve Qwen/Qwen3-8B --made-up {SECRET} --speculative-config '{SECRET}'\n"
        f"vllm serve https://user:{SECRET}@host/m\n"
        f"VLLM_USE_V2_MODEL_RUNNER={SECRET} vllm serve Qwen/Qwen3-8B\n"
        f"VLLM_API_KEY={SECRET} VLLM_USE_V2_MODEL_RUNNER=0 vllm serve Qwen/Qwen3-8B --enable-dbo={SECRET}\n",
        "b.yaml": f"services: {{a: {{image: vllm/vllm, command: '--model Qwen/Qwen3-8B', environment: {{K: {SECRET}}}}}}}",
        "c.yaml": f"kind: Pod\nimage: vllm\nargs: [--model, Qwen/Qwen3-8B, --api-key, {SECRET}]\n"
        f"env: [{{name: VLLM_API_KEY, value: {SECRET}}}]",
        "d.yaml": f"image: vllm\nargs: [{SECRET}: &x, *y",
        "e.service": f"[Service]\nEnvironment=HF_TOKEN={SECRET}\nExecStart=/bin/vllm serve Qwen/Qwen3-8B '{SECRET}\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    report = _examine(tmp_path)
    assert len(report.findings) + len(report.unknown) >= 8
    assert len(report.left_out) == 2
    for text in (
        as_text(report),
        as_markdown(report),
        json.dumps(as_data(report)),
        json.dumps(as_sarif(report, "0")),
    ):
        assert SECRET not in text


# --- names, formats, the command ----------------------------------------------------------------------------


def test_names_of_models() -> None:
    assert {architecture for _, architecture in FAMILIES} <= known_architectures()
    told = {
        "meta-llama/Llama-3.2-1B-Instruct": "LlamaForCausalLM",
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8": "LlamaForCausalLM",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": "Llama4ForConditionalGeneration",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen3MoeForCausalLM",
        "Qwen/Qwen3-Embedding-8B": None,
        "google/gemma-3-1b-it": "Gemma3ForCausalLM",
        "google/gemma-3-27b-it": "Gemma3ForConditionalGeneration",
        "deepseek-ai/DeepSeek-V3.2-Exp": "DeepseekV32ForCausalLM",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "LlamaForCausalLM",
        "TheBloke/Llama-2-7B-GGUF": None,
        "tiiuae/falcon-7b": "FalconForCausalLM",
        "openai-community/gpt2": "GPT2LMHeadModel",
        "/models/ours": None,
        "": None,
    }
    assert {name: architecture_of(name) for name in told} == told
    assert is_quantized_name("Qwen/Qwen3-8B-AWQ")
    assert is_quantized_name("deepseek-ai/DeepSeek-R1")
    assert not is_quantized_name("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    moe = {"Qwen3MoeForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"}
    assert all(typical_model(architecture).is_moe for architecture in moe)


def test_formats(report: Report) -> None:
    sarif = as_sarif(report, "1.2.3")
    (run,) = sarif["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in run["results"]} <= rules
    assert all(r["locations"][0]["physicalLocation"]["region"]["startLine"] >= 1 for r in run["results"])
    assert len([r for r in run["results"] if r["ruleId"] == "runner-changes"]) == 5
    data = json.loads(json.dumps(as_data(report)))
    assert len(data["findings"]) == len(report.findings)
    assert as_markdown(report).count("\n| ") == len(report.findings) + 2


def test_sarif_names_the_file_as_a_uri_and_only_a_start_that_stops_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "run all#1.sh"
    for first, last, level in (("0.24.0", "0.25.0", "error"), ("0.29.0", "0.30.0", "note")):
        file.write_text("vllm serve Qwen/Qwen2.5-7B-Instruct\n")
        (run,) = as_sarif(_examine(file, first=first, last=last, machine="wsl2"), "0")["runs"]
        (result,) = (r for r in run["results"] if r["ruleId"] == "start-changes")
        assert result["level"] == level
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.endswith("/run%20all%231.sh")


def test_sarif_says_what_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("\nvllm serve org/never-heard-of --api-key abcdef\n")
    (tmp_path / "b.sh").write_text("vllm serve 'm\n")
    sarif = as_sarif(_examine(tmp_path), "0")
    (run,) = sarif["runs"]
    told = [(r["ruleId"], r["level"], r["locations"][0]["physicalLocation"]) for r in run["results"]]
    places = [(place["artifactLocation"]["uri"][-4:], place["region"]["startLine"]) for _, _, place in told]
    assert [(rule, level) for rule, level, _ in told] == [("not-known", "note")] * 2
    assert places == [("a.sh", 2), ("b.sh", 1)]
    assert "abcdef" not in json.dumps(sarif)


def test_the_command(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["upgrade", *words])

    changes = run("--from", "vllm/0.24.0", "--to", "vllm/0.33.0", str(EXAMPLES))
    assert (changes.exit_code, "to keep v1: " in changes.stdout) == (1, True)
    same = tmp_path / "same.sh"
    same.write_text("vllm serve Qwen/Qwen3-8B\nvllm serve /models/ours\n")
    assert run("--from", "0.24.0", "--to", "0.28.0", str(same)).exit_code == 0
    assert run("--from", "0.24.0", "--to", "0.28.0", "--strict", str(same)).exit_code == 1
    data = json.loads(run("--from", "0.24.0", "--to", "0.28.0", "--json", str(same)).stdout)
    assert [f["after"]["runner"] for f in data["findings"]] == ["v2"]
    assert len(data["unknown"]) == 1
    out = tmp_path / "out.sarif"
    assert (
        run(
            "--from", "0.24.0", "--to", "0.33.0", "--format", "sarif", "--output", str(out), str(EXAMPLES)
        ).exit_code
        == 1
    )
    assert json.loads(out.read_text())["version"] == "2.1.0"
    for words, message in (
        (("--from", "0.33.0", "--to", "0.24.0", str(same)), "the later release"),
        (("--from", "0.24.0", "--to", "0.99.0", str(same)), "'vllm/0.33.0'"),
        (("--from", "0.24.0", "--to", "0.33.0", str(tmp_path / "none")), "no such file"),
    ):
        result = run(*words)
        assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_name_tells_no_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("vllm serve meta-llama/Llama-3.1-8B -tp 3 --max-model-len 1m\n")
    (finding,) = _examine(tmp_path).findings
    assert finding.after.starts
    assert any("not its sizes" in text for text in finding.assumed)


def test_a_folder_of_a_model_is_read(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.sh").write_text(f"vllm serve {tmp_path}\n")
    (finding,) = _examine(tmp_path).findings
    assert finding.architecture == "Qwen3ForCausalLM"
    assert not any("by its name" in text for text in finding.assumed)
    verdict = select_runner(str(tmp_path), rulebook="vllm/0.33.0", environment=H100)
    assert verdict.runner == finding.after.runner


def test_the_action_and_the_hook_call_the_command() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    script = action["runs"]["steps"][1]["run"]
    options = set(CliRunner().invoke(app, ["upgrade", "--help"]).stdout.split())
    for option in ("--from", "--to", "--assume", "--fail-on", "--format", "--output"):
        assert option in script
        assert option in options
    assert "${{" not in script
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "dodona upgrade"
