"""`select_runner` with a book of vLLM: what flags, command lines and config.json say of the facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.registry import system_of
from dodona.oracle.systems.vllm.arguments import from_command_line, from_flat

GPU = Environment(has_triton=True, platform="cuda")
DENSE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}


def _model(folder: Path, architecture: str, **config: Any) -> str:
    path = folder / architecture
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], **DENSE, **config}))
    return str(path)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return _model(tmp_path, "LlamaForCausalLM", model_type="llama")


def _select(release: str, config: Any, environment: Environment = GPU) -> Verdict:
    return select_runner(config, rulebook=f"vllm/{release}", environment=environment)


@pytest.mark.parametrize(
    ("release", "qwen3", "llama", "mixtral", "mamba"),
    [
        ("0.16.0", "v1", "v1", "v1", "v1"),
        ("0.21.0", "v1", "v1", "v1", "v1"),
        ("0.22.1", "v2", "v1", "v1", "v1"),
        ("0.23.0", "v2", "v2", "v1", "v1"),
        ("0.24.0", "v2", "v2", "v1", "v1"),
        ("0.25.1", "v2", "v2", "v1", "v1"),
        ("0.28.0", "v2", "v2", "v1", "v1"),
        ("0.29.0", "v2", "v2", "v2", "v2"),
        ("0.33.0", "v2", "v2", "v2", "v2"),
    ],
)
def test_models_over_the_releases(
    tmp_path: Path, release: str, qwen3: str, llama: str, mixtral: str, mamba: str
) -> None:
    models = {
        _model(tmp_path, "Qwen3ForCausalLM", model_type="qwen3"): qwen3,
        _model(tmp_path, "LlamaForCausalLM", model_type="llama"): llama,
        _model(tmp_path, "MixtralForCausalLM", model_type="mixtral", num_local_experts=4): mixtral,
        _model(tmp_path, "MambaForCausalLM", model_type="mamba"): mamba,
    }
    assert {model: _select(release, model).runner for model in models} == models


def test_a_quantized_model_waits_for_0_24(tmp_path: Path, llama: str) -> None:
    stored = _model(
        tmp_path, "MistralForCausalLM", model_type="mistral", quantization_config={"quant_method": "fp8"}
    )
    assert [_select(release, stored).runner for release in ("0.23.0", "0.24.0")] == ["v1", "v2"]
    # the flag alone is no quantized checkpoint for vLLM
    assert _select("0.23.0", f"vllm serve {llama} --quantization fp8").runner == "v2"


@pytest.mark.parametrize(
    ("release", "flags", "runner", "rules"),
    [
        ("0.23.0", "-pp 2", "v2", ""),
        ("0.23.0", "-pcp 2", "v1", "prefill-context-parallelism"),
        ("0.23.0", "--prefill-context-parallel-size=2", "v1", "prefill-context-parallelism"),
        ("0.22.0", "--reasoning-parser qwen3", "v1", "architecture reasoning-budget"),
        ("0.23.0", "--reasoning-parser qwen3", "v2", ""),
        ("0.23.0", "-cc 1", "v1", "stock-torch-compile"),
        ("0.23.0", "--compilation-config.mode stock_torch_compile", "v1", "stock-torch-compile"),
        (
            "0.23.0",
            """--compilation-config '{"pass_config": {"enable_sp": true, "sp_min_token_num": 9}}' -tp 2""",
            "v1",
            "sequence-parallelism",
        ),
        ("0.23.0", "--speculative-config.method deepseek_mtp", "v2", "speculation"),
        (
            "0.23.0",
            """--speculative-config '{"method": "suffix", "num_speculative_tokens": 4}'""",
            "v1",
            "speculative-method",
        ),
        ("0.23.0", """--speculative-config '{"model": "[ngram]"}'""", "v1", "ngram"),
        (
            "0.23.0",
            """--speculative-config '{"model": "yuhuili/EAGLE3-LLaMA"}' -pp 2""",
            "v1",
            "eagle3-pipeline-parallelism",
        ),
        ("0.23.0", "--logits-processors a:B c:D", "v1", "custom-logits-processors"),
        ("0.23.0", "--logprobs-mode raw_logits", "v1", "logprobs-mode"),
        ("0.23.0", "--runner pooling", "v1", "generate"),
        ("0.23.0", "--enable-dbo --no-enable-dbo", "v2", ""),
        ("0.23.0", "--enable-lora --max-loras 4 --trust-remote-code --port 80", "v2", ""),
        (
            "0.24.0",
            "--distributed-executor-backend external_launcher -pp 2",
            "v1",
            "pipeline-parallelism-external-launcher",
        ),
        (
            "0.25.0",
            '--speculative-config \'{"method": "dspark", "num_speculative_tokens": 4}\'',
            "v2",
            "dspark",
        ),
        (
            "0.27.0",
            "-pcp 2",
            "v2",
            "needs-v2-prefill-context-parallelism prefill-context-parallelism v1-prefill-context-parallelism",
        ),
        ("0.30.0", """--kv-transfer-config '{"kv_connector": "HiSparseConnector"}'""", "v2", "hisparse"),
        ("0.30.0", "--watermark-config.key secret", "v2", "watermark"),
        ("0.33.0", "--ubatch-size 2 --all2all-backend nixl_ep", "v1", "dual-batch-overlap"),
    ],
)
def test_flags_reach_the_rules(llama: str, release: str, flags: str, runner: str, rules: str) -> None:
    verdict = _select(release, f"vllm serve {llama} {flags}")
    assert verdict.runner == runner
    assert sorted(reason.rule for reason in verdict.reasons) == rules.split()


def test_a_refused_start_is_told_and_nothing_is_raised(llama: str) -> None:
    verdict = _select("0.27.0", f"vllm serve {llama} -pcp 2")
    assert (verdict.runner, verdict.decided_by) == ("v2", "needs-v2-prefill-context-parallelism")
    assert [reason.rule for reason in verdict.refusals] == ["prefill-context-parallelism"]
    assert "can't start" in verdict.explain().splitlines()[0]


def test_a_refused_choice_is_told_and_nothing_is_raised(llama: str) -> None:
    forced = Environment(has_triton=True, platform="cuda", override="v1")
    attention = json.dumps({"hisparse_config": {}})
    verdict = _select("0.31.0", ["vllm", "serve", llama, "--attention-config", attention], forced)
    assert (verdict.runner, verdict.decided_by) == (None, "hisparse-refused")
    assert [reason.rule for reason in verdict.refusals] == ["hisparse-refused"]
    assert "the choice itself is refused" in verdict.explain()


def test_what_vllm_logs_is_told_also_where_it_is_nothing(llama: str) -> None:
    silent = _select("0.22.0", llama)
    assert (silent.runner, silent.log) == ("v1", None)
    assert "vllm logs nothing of this." in silent.explain()
    told = _select("0.23.0", f"vllm serve {llama} -pcp 2 --enable-dbo")
    features = "prefill context parallelism, dual batch overlap"
    assert told.log == f"Model Runner V2 does not yet support {features}; using the V1 model runner instead."
    assert f"vllm logs: {told.log}" in told.explain()
    assert _select("0.33.0", llama).log is None


def test_forms_of_one_configuration_decide_alike(tmp_path: Path, llama: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"model: {llama}\nprefill-context-parallel-size: 2\ngpu-memory-utilization: 0.5\n")
    verdicts = [
        _select("0.25.0", config)
        for config in (
            f"vllm serve {llama} -pcp 2",
            ["vllm", "serve", "-pcp", "2", llama],
            [llama, "--prefill_context_parallel_size", "2"],
            f"vllm serve --config {file}",
            f"vllm serve --model={llama} -pcp=2",
            {"model_config": {"model": llama}, "parallel_config": {"prefill_context_parallel_size": 2}},
            EngineConfig.from_flat(llama, prefill_context_parallel_size=2),
        )
    ]
    assert {verdict.runner for verdict in verdicts} == {"v1"}
    assert {tuple(reason.rule for reason in verdict.reasons) for verdict in verdicts} == {
        ("prefill-context-parallelism",)
    }
    assert all(v.config.parallel_config.prefill_context_parallel_size == 2 for v in verdicts)
    assert all(v.config.model_config.model == llama for v in verdicts)


def test_a_verdict_holds_the_whole_configuration_and_survives_json(llama: str) -> None:
    verdict = _select("0.33.0", f"vllm serve {llama} --enable-dbo")
    assert verdict.vllm_config is not None
    assert json.loads(verdict.vllm_config)["parallel_config"] == {"enable_dbo": True}
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    with pytest.raises(Exception, match="describes vllm"):
        verdict.build()


def test_only_unknown_facts_on_which_a_rule_hangs_are_assumed(tmp_path: Path, llama: str) -> None:
    assert _select("0.33.0", llama).assumptions == ()
    assert _select("0.33.0", f"vllm serve {llama} -pp 2").assumptions == (
        "scheduler_config.async_scheduling = unset (not known)",
    )
    assert _select("0.33.0", f"vllm serve {llama} -pp 2 --async-scheduling").assumptions == ()
    wrapped = _model(tmp_path, "BioGptForCausalLM", model_type="biogpt")
    assert _select("0.33.0", wrapped).assumptions == ("model_config.is_supported = true (not known)",)


def test_a_draft_model_that_can_be_read_is_read(tmp_path: Path, llama: str) -> None:
    layers = ["sliding_attention", "full_attention"]
    draft = _model(tmp_path, "Qwen3DFlashModel", model_type="qwen3", layer_types=layers)
    speculative = json.dumps({"method": "dflash", "model": draft})
    verdict = _select("0.26.0", ["vllm", "serve", llama, "--speculative-config", speculative])
    assert (verdict.decided_by, verdict.assumptions) == ("dflash-mixed", ())
    elsewhere = json.dumps({"method": "dflash", "model": "someone/draft"})
    verdict = _select("0.26.0", ["vllm", "serve", llama, "--speculative-config", elsewhere])
    assert verdict.decided_by == "preferred"
    assert any("has_mixed_sliding_layers" in assumption for assumption in verdict.assumptions)


def test_what_is_not_known_is_left_alone_and_noted(llama: str) -> None:
    verdict = _select("0.33.0", f"vllm serve {llama} --brand-new-flag 7 --kv-cache-dtype fp8")
    assert verdict.unread == ("--brand-new-flag: no flag of vLLM 0.33.0 that is known here",)
    assert verdict.explain().splitlines()[1:3] == [
        "Not understood, and it may be otherwise for that:",
        "  - --brand-new-flag: no flag of vLLM 0.33.0 that is known here",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vllm serve {m} --enable-dob", "did you mean 'enable_dbo'"),
        ("vllm serve {m} --tensor-paralel-size 2", "did you mean 'tensor_parallel_size'"),
        ("vllm serve {m} -tp two", "--tensor-parallel-size: expected a whole number"),
        ("vllm serve {m} -tp", "-tp: a value is missing"),
        ("vllm serve {m} {m}x", "expected one model"),
        ("vllm serve --brand-new-flag {m}", "name the model first"),
        ("vllm bench {m}", "expected `vllm serve"),
        ("vllm serve {m} --speculative-config {{", "--speculative-config: not valid JSON"),
        ("vllm serve {m} --speculative-config 3", "--speculative-config: expected a JSON object"),
        ("vllm serve {m} --tensor-parallel-size.x 3", "has no parts"),
        ("vllm serve {m} -cc 17", "compilation_config.mode: expected one of NONE (0)"),
        ("vllm serve {m} --enable-dbo=maybe", "--enable-dbo: expected true or false"),
        ("vllm serve {m} 'torn", "can't be split"),
        ("vllm serve", "no model"),
        ("vllm serve {m} --config /nowhere.yaml", "/nowhere.yaml"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_named(llama: str, command: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _select("0.33.0", command.format(m=llama))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"parallel_config": {"enable_dob": True}},
            "parallel_config.enable_dob: no such field; did you mean",
        ),
        ({"paralel_config": {}}, "did you mean 'parallel_config'"),
        ({"parallel_config": 3}, "expected a section"),
        ({"parallel_config": {"enable_dbo": "on"}}, "parallel_config.enable_dbo: expected true or false"),
        ({"model_config": {"model": "/nowhere"}}, "/nowhere"),
        ({"model_config": {}}, "no model"),
    ],
)
def test_a_mapping_that_cannot_be_read_is_named(llama: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _select("0.33.0", {"model_config": {"model": llama}, **sections})
    assert message in str(caught.value)


def test_what_a_mapping_says_of_the_model_counts(llama: str) -> None:
    said = {"model_config": {"model": llama, "is_diffusion": True}}
    assert _select("0.24.0", said).decided_by == "diffusion"


def test_every_fact_of_every_book_gets_a_value(llama: str) -> None:
    speculative = ["--speculative-config", '{"model": "someone/draft"}']
    for book in (
        bundled_rulebook("vllm/0.22.0"),
        bundled_rulebook("vllm/0.28.0"),
        bundled_rulebook("vllm/0.33.0"),
    ):
        facts = system_of("vllm").deploy([llama, "-tp", "2", *speculative], GPU, book).facts()
        assert set(book.reads) <= set(facts)
        assert not any("UNKNOWN" in repr(value) for value in facts.values())


def test_the_environment_variable_of_vllm_counts_and_that_of_dodona_does_not(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "nonsense")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "2")
    verdict = select_runner(llama, rulebook="vllm/0.25.1")
    assert (verdict.runner, verdict.decided_by) == ("v2", "forced-v2")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "yes")
    with pytest.raises(ConfigError, match="VLLM_USE_V2_MODEL_RUNNER"):
        select_runner(llama, rulebook="vllm/0.25.1")


def test_arguments_are_sorted_into_sections() -> None:
    words = "m --enable-lora --mm-encoder-only -O3 --reasoning-parser x -sc.draft.depth 3 -sc.method y"
    found = from_command_line(words.split())
    assert found.sections == {
        "model_config": {"model": "m", "multimodal_config": {"mm_encoder_only": True}},
        "lora_config": {},
        "reasoning_config": {"reasoning_parser": "x"},
        "speculative_config": {"draft": {"depth": 3}, "method": "y"},
    }
    assert found.unread == ()
    assert from_flat({"enable_lora": False, "speculative_config": None}).sections == {}


def test_the_command(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["select", *words])

    found = run("--rulebook", "vllm/0.25.1", llama, "--assume-gpu", "--enable-dbo", "--json")
    assert found.exit_code == 3
    reasons = sorted(reason["rule"] for reason in json.loads(found.stdout)["reasons"])
    assert reasons == ["dual-batch-overlap", "dual-batch-overlap-backend"]
    found = run("--rulebook=vllm/0.27.0", "--assume-gpu", "--", "vllm", "serve", llama, "-pcp", "2")
    assert (found.exit_code, "can't start" in found.stdout) == (3, True)
    found = run("--rulebook", "vllm/0.34.0", llama)
    assert (found.exit_code, "'vllm/0.33.0'" in found.stderr) == (2, True)
    found = run(llama, "--assume-gpu", "--enable-dbo")
    assert found.exit_code == 2
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    found = run("--rulebook", "vllm/0.33.0", "--assume-gpu", "--json", llama)
    assert json.loads(found.stdout)["decided_by"] == "forced-v1"
