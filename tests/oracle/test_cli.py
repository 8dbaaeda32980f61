"""The command line: flags, files, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dodona
from dodona.cli.app import app
from dodona.cli.flags import read_config_file
from dodona.oracle.config.flat import FLAT_ARGUMENTS, flat_names
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.systems.books import load_rulebook

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "qwen3"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 260,
}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    directory = tmp_path / "llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    return str(directory)


def run(*arguments: str, env: dict[str, str | None] | None = None) -> Any:
    """Without a trial load, which tests/v1/test_trial_load.py is about."""
    if arguments[0] == "select":
        arguments = ("select", "--no-trial-load", *arguments[1:])
    result = CliRunner().invoke(app, list(arguments), env={"DODONA_USE_V2_MODEL_RUNNER": None, **(env or {})})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def verdict_of(result: Any) -> Verdict:
    return Verdict.model_validate_json(result.stdout)


def test_select_prints_the_verdict_as_json(llama: str) -> None:
    result = run("select", llama, "--assume-gpu", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert verdict_of(result).runner == "v2"
    assert verdict_of(result).config.model_config.model == llama


def test_select_prints_a_table_with_every_reason(llama: str) -> None:
    result = run("select", llama, "--assume-gpu", "--compilation-config", "1")
    assert result.exit_code == 0
    assert "v1" in result.stdout.splitlines()[0]
    assert "stock-torch-compile" in result.stdout


def test_a_refusal_is_printed_and_exits_with_3(llama: str) -> None:
    as_json = run("select", llama, "--assume-gpu", "-dcp", "2", "--json")
    assert as_json.exit_code == 3
    assert "decode-context-parallelism" in {reason.rule for reason in verdict_of(as_json).refusals}
    as_table = run("select", llama, "--assume-gpu", "-dcp", "2")
    assert as_table.exit_code == 3
    assert "decode-context-parallelism" in as_table.stdout


def test_the_override_holds_for_an_assumed_gpu_too(llama: str) -> None:
    result = run("select", llama, "--assume-gpu", "--json", env={"DODONA_USE_V2_MODEL_RUNNER": "0"})
    assert (verdict_of(result).runner, verdict_of(result).forced) == ("v1", True)
    wrong = run("select", llama, "--assume-gpu", env={"DODONA_USE_V2_MODEL_RUNNER": "yes"})
    assert wrong.exit_code == 2
    assert "DODONA_USE_V2_MODEL_RUNNER='yes'" in wrong.stderr


GIVEN: dict[str, tuple[str, Any]] = {
    "tokenizer": ("t", "t"),
    "dtype": ("float16", "float16"),
    "runner": ("generate", "generate"),
    "convert": ("none", "none"),
    "revision": ("main", "main"),
    "quantization": ("fp8", "fp8"),
    "generation_config": ("vllm", "vllm"),
    "gpu_memory_utilization": ("0.5", 0.5),
    "kv_cache_dtype": ("fp8", "fp8"),
    "kv_offloading_size": ("1.5", 1.5),
    "kv_offloading_backend": ("lmcache", "lmcache"),
    "device": ("cpu", "cpu"),
    "load_format": ("dummy", "dummy"),
    "distributed_executor_backend": ("mp", "mp"),
    "data_parallel_backend": ("ray", "ray"),
}


@pytest.mark.parametrize("name", sorted(set(FLAT_ARGUMENTS) - {"model", "revision"}))
def test_each_flag_reaches_its_field(name: str, llama: str) -> None:
    section, field = FLAT_ARGUMENTS[name]
    flag = "--" + name.replace("_", "-")
    extra = ["--enable-lora"] if section == "lora_config" else []
    if name in GIVEN:
        text, value = GIVEN[name]
        arguments = [flag, text]
    else:
        default = verdict_of(run("select", llama, "--json", *extra)).config
        if isinstance(getattr(getattr(default, section), field), bool):
            value = not getattr(getattr(default, section), field)
            arguments = [flag if value else f"--no-{flag[2:]}"]
        else:
            value, arguments = 3, [flag, "3"]
    made = verdict_of(run("select", llama, "--json", *extra, *arguments)).config
    assert getattr(getattr(made, section), field) == value


def test_json_flags(llama: str) -> None:
    result = run(
        "select",
        llama,
        "--json",
        "--speculative-config",
        '{"method": "eagle3", "num_speculative_tokens": 2}',
        "--kv-transfer-config",
        '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}',
        "-cc",
        '{"mode": "vllm_compile"}',
    )
    made = verdict_of(result).config
    assert made.speculative_config is not None
    assert made.speculative_config.num_speculative_tokens == 2
    assert made.kv_transfer_config is not None
    assert made.kv_transfer_config.kv_connector == "NixlConnector"
    assert made.compilation_config is not None
    assert made.compilation_config.mode == "VLLM_COMPILE"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensor-paralel-size", "2"], "--tensor-parallel-size"),
        (["--block-size", "x"], "--block-size"),
        (["--block-size", "0"], "cache_config.block_size: expected greater than or equal to 1"),
        (["--dtype", "int8"], "model_config.dtype: expected 'auto'"),
        (["--speculative-config", "{"], "speculative_config: not valid JSON"),
        (["--compilation-config", '{"mode": 9}'], "compilation_config.mode: expected one of"),
        (["--max-loras", "2"], "enable_lora"),
        (["--rulebook", "nothing"], "nothing"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
    ],
)
def test_bad_input_exits_with_2_and_says_what(llama: str, arguments: list[str], message: str) -> None:
    result = run("select", llama, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["select"], ["select", "/no/such/dir"], ["generate", "x"], ["nothing"]]
)
def test_what_is_missing_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_a_broken_config_json_names_file_and_field(llama: str) -> None:
    (Path(llama) / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": "64"}))
    result = run("select", llama)
    assert result.exit_code == 2
    assert f"{llama}/config.json: field 'hidden_size'" in result.stderr


# --- configuration files


def test_a_file_gives_arguments_and_flags_win(llama: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(
        f"model: {llama}\n"
        "block-size: 32\n"
        "max_num_seqs: 8\n"
        "gpu-memory-utilization: 0.5\n"
        "enable-prefix-caching: false\n"
        "speculative-config:\n  method: ngram\n"
    )
    made = verdict_of(run("select", "--config", str(file), "--json", "--max-num-seqs", "4")).config
    assert made.model_config.model == llama
    assert made.cache_config.block_size == 32
    assert made.cache_config.gpu_memory_utilization == 0.5
    assert made.cache_config.enable_prefix_caching is False
    assert made.scheduler_config.max_num_seqs == 4
    assert made.speculative_config is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block-sise: 32\n", "did you mean 'block_size'?"),
        ("block-size: 32\nblock_size: 16\n", "given twice"),
        ("block-size: 32\nblock-size: 16\n", "not valid YAML"),
        ("- a\n", "expected `name: value` lines"),
        ("a: [\n", "not valid YAML"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system 1\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config_file(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_arguments_of_vllms_server_are_left_out_and_named(llama: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(f"model: {llama}\nhost: 127.0.0.1\nport: 6379\nuvicorn-log-level: info\nblock-size: 32\n")
    result = run("select", "--config", str(file), "--json")
    assert verdict_of(result).config.cache_config.block_size == 32
    assert (
        f"{file}: left out, since there is no HTTP server here: host, port, uvicorn_log_level"
        in result.stderr
    )


def test_an_empty_file_is_no_arguments(tmp_path: Path) -> None:
    (tmp_path / "engine.yaml").write_text("# nothing\n")
    assert read_config_file(tmp_path / "engine.yaml") == {}


# --- rules, help


def test_rules_list() -> None:
    book = load_rulebook("dodona")
    table = run("rules", "list")
    assert table.exit_code == 0
    assert all(rule.id in table.stdout for rule in book.rules)
    listed = json.loads(run("rules", "list", "--json").stdout)
    assert [rule["id"] for rule in listed["rules"]] == [rule.id for rule in book.rules]
    assert listed["content_hash"] == book.content_hash


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"dodona {dodona.__version__}\n"


def test_help_names_every_flag() -> None:
    for command in ("select", "bench"):
        text = run(command, "--help", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).stdout
        for name in flat_names():
            assert name == "model" or "--" + name.replace("_", "-") in text, name


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter of its own; the last line of stderr is its list of top-level modules."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr))\n"
        "from dodona.cli import main; main()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=env)


def test_help_and_select_load_no_torch(llama: str) -> None:
    for arguments in (["--help"], ["select", llama, "--json", "--load-format", "dummy", "--no-trial-load"]):
        done = fresh(*arguments)
        assert done.returncode == 0, done.stderr
        modules = set(done.stderr.splitlines()[-1].split())
        assert modules & {"torch", "transformers", "huggingface_hub", "numpy"} == set()


# --- generate and bench, on the trained model


def test_generate_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run(
        *("generate", str(CHECKPOINT), "--device", "cpu", "--chat", "--temperature", "0", "--json"),
        *("--prompt", "What is 37 + 58?", "--prompt", "What is 20 - 5?"),
    )
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["text"] for record in records] == ["95", "15"]
    assert "v1" in result.stderr


def test_generate_prints_the_text_alone_for_one_prompt() -> None:
    result = run(
        *(
            "generate",
            str(CHECKPOINT),
            "--device",
            "cpu",
            "--prompt",
            "What is 37 + 58?",
            "--temperature",
            "0",
        ),
        *("--max-tokens", "8", "--stop", "\n"),
    )
    assert (result.exit_code, result.stdout.strip()) == (0, "95")


def test_one_bad_prompt_leaves_the_others() -> None:
    result = run(
        *("generate", str(CHECKPOINT), "--device", "cpu", "--temperature", "0"),
        *("--prompt", "", "--prompt", "What is 37 + 58?"),
    )
    assert result.exit_code == 2
    assert "95" in result.stdout
    assert "prompt ''" in result.stderr


def test_a_parameter_out_of_range_is_told_before_loading() -> None:
    result = run("generate", str(CHECKPOINT), "--prompt", "x", "--temperature", "-1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("dodona: temperature")


def test_generate_keeps_to_a_form(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = '{"enum": ["grün", 2]}'
    (tmp_path / "schema.json").write_text(schema, encoding="utf-8")
    (tmp_path / "form.lark").write_text('start: "ja" | "nein"', encoding="utf-8")
    texts = []
    for flags in (
        ("--json-schema", schema),
        ("--json-schema", str(tmp_path / "schema.json")),
        ("--grammar", str(tmp_path / "form.lark")),
        ("--regex", "[a-c]{3}"),
    ):
        result = run(
            "generate", str(CHECKPOINT), "--device", "cpu", "--prompt", "1 + 1", "--seed", "3", *flags
        )
        assert result.exit_code == 0, result.stderr
        texts.append(result.stdout.strip())
    assert json.loads(texts[0]) in ("grün", 2)
    assert json.loads(texts[1]) == json.loads(texts[0])
    assert texts[2] in ("ja", "nein")
    assert re.fullmatch("[a-c]{3}", texts[3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--regex", "a", "--json-schema", "{}"), "--json-schema and --regex can't go together"),
        (("--json-schema", "/no/such/file"), "--json-schema: /no/such/file: cannot be read"),
        (("--grammar", "/no/such/file"), "--grammar: /no/such/file: cannot be read"),
        (("--json-schema", "{3"), "structured_outputs.json is not JSON"),
        (("--regex", "a", "--ignore-eos"), "ignore_eos can't go with structured_outputs"),
    ],
)
def test_forms_that_are_refused_before_loading(flags: tuple[str, ...], message: str) -> None:
    result = run("generate", str(CHECKPOINT), "--prompt", "x", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_generate_refused_by_a_rule_shows_the_verdict() -> None:
    result = run("generate", str(CHECKPOINT), "--prompt", "x", "--decode-context-parallel-size", "2")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "decode-context-parallelism" in result.stderr


def test_bench_reports() -> None:
    result = run(
        *("bench", str(CHECKPOINT), "--device", "cpu", "--num-prompts", "3", "--input-len", "16"),
        *("--output-len", "4", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["num_prompts"], report["input_len"], report["output_len"]) == (3, 16, 4)
    assert report["output_tokens_per_s"] == pytest.approx(12 / report["elapsed_s"], rel=0.05)
    assert report["time_to_first_token_s"] > 0


def test_bench_that_does_not_fit() -> None:
    result = run("bench", str(CHECKPOINT), "--device", "cpu", "--input-len", "5000")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--input-len 5000" in result.stderr


def test_a_rule_about_an_architecture_that_no_model_has_is_a_warning(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "rules" / "dodona.yaml").read_text()
    assert run("rules", "list").stderr == ""
    book = tmp_path / "book.yaml"
    book.write_text(text.replace("LlamaForCausalLM", "LamaForCausalLM"))
    result = run("rules", "list", "--rulebook", str(book))
    assert result.exit_code == 0
    assert "'LamaForCausalLM'; did you mean 'LlamaForCausalLM'?" in result.stderr
