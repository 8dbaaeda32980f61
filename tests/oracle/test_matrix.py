"""`dodona matrix`: cells against the selection itself, formats, and the generated document."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.matrix import Cell, Column, Feature, Matrix, Model, make_matrix
from dodona.oracle.analysis.matrix_formats import matrix_html, matrix_markdown
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner, verdict_for
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks, load_rulebook

DODONA = bundled_rulebook("dodona")
DOCUMENT = Path(__file__).parents[2] / "docs" / "matrix.md"

ASKED: dict[str, dict[str, Any]] = {
    "cuda": {"device": "cpu"},
    "draft-runner": {"runner": "draft"},
    "pooling-combinations": {"runner": "pooling", "compilation_config": 1},
    "block-size": {"block_size": 48},
    "quantization": {"quantization": "awq"},
    "quantized-tensor-parallelism": {"tensor_parallel_size": 2},
    "executor-backend": {"distributed_executor_backend": "external_launcher"},
    "ray-device": {"distributed_executor_backend": "ray", "tensor_parallel_size": 2},
    "workers-combinations": {"distributed_executor_backend": "mp", "compilation_config": 1},
    "pipeline-parallelism": {"pipeline_parallel_size": 2},
    "data-parallel-deployment": {"data_parallel_external_lb": True},
    "prefill-context-parallelism": {"prefill_context_parallel_size": 2},
    "decode-context-parallelism": {"decode_context_parallel_size": 2},
    "expert-parallelism": {"enable_expert_parallel": True},
    "lora": {"enable_lora": True},
    "speculative-method": {"speculative_config": {"method": "medusa"}},
    "draft-tensor-parallelism": {
        "speculative_config": {
            "method": "ngram",
            "draft_tensor_parallel_size": 2,
            "num_speculative_tokens": 2,
        },
    },
    "speculative-decoding": {"speculative_config": {"method": "medusa"}},
    "parallel-drafting": {
        "speculative_config": {"method": "ngram", "parallel_drafting": True, "num_speculative_tokens": 2}
    },
    "eagle3-pipeline-parallelism": {
        "speculative_config": {"method": "eagle3", "model": "m"},
        "pipeline_parallel_size": 2,
    },
    "kv-connector": {"kv_transfer_config": {"kv_connector": "C", "kv_role": "kv_both"}},
    "companion-directories": {"generation_config": "/missing"},
    "kv-connector-settings": {"kv_offloading_size": 1.0, "kv_transfer_config": {"kv_port": 80}},
    "speculative-kv-connector": {
        "speculative_config": {"method": "draft_model", "model": "m", "num_speculative_tokens": 2},
        "kv_offloading_size": 1.0,
    },
    "library-quantization": {"tensor_parallel_size": 2},
    "lora-torch-compile": {"enable_lora": True, "compilation_config": 1},
    "kv-cache-dtype": {"kv_cache_dtype": "fp8"},
    "stock-torch-compile": {"compilation_config": 1},
    "dynamo-trace-once": {"compilation_config": 2},
    "vllm-compile": {"compilation_config": 3},
}
"""By rule, the flags that ask for its feature."""

_ACT_ORDER = {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}}
STORED: dict[str, dict[str, Any]] = {
    "quantized-weights": _ACT_ORDER,
    "quantized-tensor-parallelism": _ACT_ORDER,
    "library-quantization-device": {
        "quantization_config": {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}},
        }
    },
    "library-quantization": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
}
"""By rule, what config.json says where the feature is the checkpoint's."""

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"model_type": "qwen3"},
    "LlamaForCausalLM": {"model_type": "llama"},
    "MistralForCausalLM": {"model_type": "mistral"},
    "Gemma2ForCausalLM": {"model_type": "gemma2"},
    "MixtralForCausalLM": {"model_type": "mixtral"},
    "DeepseekV3ForCausalLM": {"model_type": "deepseek_v3"},
    "JambaForCausalLM": {"model_type": "jamba"},
    "MambaForCausalLM": {"model_type": "mamba"},
    "T5ForConditionalGeneration": {"model_type": "t5"},
    "BertModel": {"model_type": "bert"},
}


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["matrix", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_each_cell_is_what_select_says() -> None:
    matrix = make_matrix(DODONA)
    cells = {
        (model.architecture, feature.rules): cell
        for column in matrix.columns
        for model in column.models
        if "RoPE" not in model.note and "quantized" not in model.note
        for feature, cell in zip(matrix.features, column.cells, strict=True)
    }
    for architecture, more in MODELS.items():
        raw = {"architectures": [architecture], "torch_dtype": "bfloat16", **more}
        for feature in matrix.features:
            rule = feature.rules[0] if feature.rules else None
            flags = ASKED.get(rule, {}) if rule is None or rule in STORED else ASKED[rule]
            info = ModelInfo.from_mapping({**raw, **STORED.get(rule or "", {})})
            verdict = verdict_for(EngineConfig.from_flat("m", **flags), info, assumed_gpu(), DODONA)
            cell = cells[architecture, feature.rules]
            assert (cell.runner, cell.starts) == (verdict.runner, not verdict.refusals), (
                architecture,
                feature.rules,
            )
            assert set(feature.rules) <= {reason.rule for reason in verdict.reasons}


def test_every_rule_that_configuration_can_ask_has_its_row() -> None:
    shown = {rule for feature in make_matrix(DODONA).features for rule in feature.rules}
    of_configuration = {
        rule.id for rule in DODONA.rules if any(DODONA.facts[name].source == "config" for name in rule.reads)
    }
    # These also need a model: one with code of its own, with an inner state, with RoPE that grows, or one
    # that is not packed; the last one needs a machine without Ray.
    of_models = {
        "remote-code", "speculative-mtp", "speculative-hidden-states", "kv-connector-inner-states",
        "speculative-row-by-row", "speculative-settings", "kv-connector-settings", "pooler-settings", "sizes",
        "kv-connector-row-by-row", "torch-compile-row-by-row",
        "tensor-parallel-families", "pipeline-parallel-families", "expert-parallel-families",
        "workers-row-by-row", "quantized-tensor-parallelism", "context-parallel-inner-states",
        "length-dependent-rope", "pooling-remote-code",
        "pooling-quantized-experts", "ray-package",
    }  # fmt: skip
    assert of_configuration - of_models <= shown
    assert shown >= set(ASKED)


def test_every_architecture_of_a_book_has_its_column() -> None:
    names = {m.architecture for c in make_matrix(DODONA).columns for m in c.models}
    assert {"Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"} <= names
    vllm = {m.architecture for c in make_matrix(bundled_rulebook("vllm/0.33.0")).columns for m in c.models}
    assert {"Step5ForCausalLM", "Step5ForConditionalGeneration"} <= vllm


@pytest.mark.parametrize("name", bundled_rulebooks())
def test_every_bundled_book_has_a_matrix(name: str) -> None:
    matrix = make_matrix(load_rulebook(name))
    assert all(len(column.cells) == len(matrix.features) for column in matrix.columns)
    assert len({column.cells for column in matrix.columns}) == len(matrix.columns)
    assert matrix_markdown(matrix).count("\n| ") >= len(matrix.features)
    json.dumps(matrix.to_mapping())


@pytest.mark.parametrize("release", ["0.22.0", "0.25.1", "0.33.0"])
def test_vllm_cells_are_what_select_says(release: str, tmp_path: Path) -> None:
    draft = {
        "method": "eagle",
        "model": str(tmp_path),
        "num_speculative_tokens": 2,
        "parallel_drafting": True,
    }
    flags = {
        ("stock-torch-compile",): ["--compilation-config", '{"mode": 1}'],
        ("dual-batch-overlap",): ["--enable-dbo", "--all2all-backend", "deepep_low_latency"],
        ("dual-batch-overlap", "dual-batch-overlap-backend"): ["--enable-dbo"],
        ("prefill-context-parallelism",): ["-pcp", "2"],
        ("parallel-drafting",): ["--speculative-config", json.dumps(draft)],
    }
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"})
    )
    matrix = make_matrix(bundled_rulebook(f"vllm/{release}"))
    column = next(c for c in matrix.columns for m in c.models if m.name == "Qwen3ForCausalLM (dense)")
    compared = 0
    for feature, cell in zip(matrix.features, column.cells, strict=True):
        words = [] if not feature.rules else flags.get(feature.rules)
        if words is not None:
            verdict = select_runner(
                [str(tmp_path), *words], rulebook=f"vllm/{release}", environment=assumed_gpu()
            )
            assert (cell.runner, cell.starts) == (verdict.runner, not verdict.refusals)
            compared += 1
    assert compared >= 3


def test_the_document_is_current() -> None:
    """`dodona matrix --format markdown --output docs/matrix.md` writes it anew."""
    result = run("--format", "markdown", "--check", str(DOCUMENT))
    assert result.exit_code == 0, result.stderr


def test_check_fails_for_a_stale_or_missing_file(tmp_path: Path) -> None:
    file = tmp_path / "matrix.md"
    missing = run("--format", "markdown", "--check", str(file))
    assert missing.exit_code == 1
    assert "out of date" in missing.stderr
    assert f"--output {file}" in missing.stderr
    assert run("--format", "markdown", "--output", str(file)).exit_code == 0
    assert run("--format", "markdown", "--check", str(file)).exit_code == 0
    file.write_text(file.read_text() + "\n")
    assert run("--format", "markdown", "--check", str(file)).exit_code == 1


def test_bad_options_are_named(tmp_path: Path) -> None:
    assert run("--check", "x", "--output", "y", "--format", "html").exit_code == 2
    text = run("--check", "x")
    assert text.exit_code == 2
    assert "give --format markdown" in text.stderr
    folder = run("--format", "html", "--output", str(tmp_path))
    assert folder.exit_code == 2
    assert "Is a directory" in folder.stderr
    assert run("--rulebook", "vllm/9.9.9").exit_code == 2


def test_the_terminal_shows_features_and_architectures() -> None:
    shown = run().stdout
    assert "pipeline parallelism" in shown
    assert "Qwen3ForCausalLM" in shown


def test_json_has_every_pair() -> None:
    data = json.loads(run("--format", "json").stdout)
    architectures = {(cell["architecture"], cell["kind"]) for cell in data["cells"]}
    assert len(data["cells"]) == len(architectures) * len(data["features"])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile() -> Matrix:
    """Hostile wherever a rule book may hold any text."""
    evil = "<script>alert('x')</script> | a_b*c & \"d\""
    column = Column((Model(evil, evil, ("rule",)),), (Cell(None, False),))
    return Matrix("mine", "vllm", evil, (Feature(("rule",), evil, {}),), (column,), ("v2", "v1"))


@pytest.mark.parametrize("matrix", [hostile(), make_matrix(DODONA)], ids=["hostile", "dodona"])
def test_html_is_whole_escaped_and_needs_nothing_else(matrix: Matrix) -> None:
    page = matrix_html(matrix)
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.links == []
    assert not re.search(r"@import|url\(", page)


def test_markdown_is_escaped() -> None:
    text = matrix_markdown(hostile())
    assert "<script>" not in text
    row = next(line for line in text.splitlines() if "alert" in line and line.startswith("| &lt;"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
