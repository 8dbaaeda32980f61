"""Command lines of vLLM as people write them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.vllm.arguments import ARGUMENTS, COULD_DECIDE, from_command_line
from dodona.oracle.systems.vllm.flags import flag_table, releases_with
from dodona.oracle.systems.vllm.invocation import image_release, invocations, is_vllm_image
from dodona.oracle.systems.vllm.shell import simple_commands

GPU = Environment(has_triton=True, platform="cuda")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    path = tmp_path / "llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **CONFIG}))
    return str(path)


def _select(release: str, command: Any) -> Verdict:
    return select_runner(command, rulebook=f"vllm/{release}", environment=GPU)


PARALLEL = {"tensor_parallel_size": 2}
EAGER = {"mode": "NONE", "cudagraph_mode": "NONE"}


@pytest.mark.parametrize(
    ("flags", "sections"),
    [
        ("--tensor-parallel 2", {"parallel_config": PARALLEL}),
        ("--tensor-parallel=2", {"parallel_config": PARALLEL}),
        ("--tensor_parallel_size 2", {"parallel_config": PARALLEL}),
        (
            "-tp=2 -dcp 2 -dp 4 -ep",
            {
                "parallel_config": {
                    **PARALLEL,
                    "decode_context_parallel_size": 2,
                    "data_parallel_size": 4,
                    "enable_expert_parallel": True,
                }
            },
        ),
        ("--enforce", {"model_config": {"enforce_eager": True}}),
        ("--async", {"scheduler_config": {"async_scheduling": True}}),
        ("--no-async-sched", {"scheduler_config": {"async_scheduling": False}}),
        ("--disable-dbo", {"parallel_config": {"enable_dbo": False}}),
        ("-O 0", {"compilation_config": EAGER}),
        ("-O0", {"compilation_config": EAGER}),
        ("-O=3 -O3 -O 3 --optimization-level 3", {}),
        (
            "-cc.mode 1 -cc.pass_config.enable_sp=true",
            {"compilation_config": {"mode": 1, "pass_config": {"enable_sp": True}}},
        ),
        ("-cc '{\"mode\": 3}'", {"compilation_config": {"mode": 3}}),
        ("-cc '{\"mode\": 3}' -cc.level 2", {"compilation_config": {"level": 2}}),
        (
            "--spec-method ngram --spec-tokens 3",
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
        ),
        ("--hf-overrides '{\"a\": 1}'", {"model_config": {"hf_overrides": {"a": 1}}}),
        ("--hf-overrides.a.b=1", {"model_config": {"hf_overrides": {"a": {"b": 1}}}}),
        ("--api-key secret --port 80 --max-num-seqs 8 --lora-modules a=b c=d", {}),
    ],
)
def test_flags(flags: str, sections: dict[str, Any]) -> None:
    before = from_command_line(
        f"vllm serve {flags} -- m" if "--lora" not in flags else f"vllm serve m {flags}"
    )
    after = from_command_line(f"vllm serve m {flags}")
    assert before == after
    assert after.unread == ()
    found = {**after.sections, "model_config": {**after.sections["model_config"]}}
    assert found["model_config"].pop("model") == "m"
    assert {name: value for name, value in found.items() if value} == sections


def test_an_abbreviation_of_several_flags_is_refused_as_vllm_does() -> None:
    with pytest.raises(ConfigError, match=r"--data-parallel-size-: .*no such|ambiguous in vLLM"):
        from_command_line("vllm serve m --data-parallel 2")
    assert from_command_line("vllm serve m --tensor-paral 2").unread == ()


def test_flags_are_those_of_the_release() -> None:
    assert "--enable-batch-sharded-sampling" in flag_table("0.29.0").options
    assert "--enable-batch-sharded-sampling" not in flag_table("0.28.0").options
    assert flag_table("0.33.0").options["--disable-dbo"].negates
    assert "--disable-dbo" not in flag_table("0.30.0").options
    assert flag_table("0.25.0").release <= "0.25.1"
    assert releases_with("monokernel") == ("0.33.0",)
    known = {name for release in ("0.24.0", "0.33.0") for name in flag_table(release).names}
    assert set(ARGUMENTS) <= known
    unread = from_command_line("vllm serve m --monokernel", "0.28.0").unread
    assert unread == ("--monokernel: no flag of vLLM 0.28.0 that is known here",)


COMMANDS = [
    "VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2",
    "env VLLM_USE_V2_MODEL_RUNNER=0 OTHER=x vllm serve {m} -tp 2",
    "export VLLM_USE_V2_MODEL_RUNNER=0\nvllm serve {m} -tp 2",
    "export A=1 VLLM_USE_V2_MODEL_RUNNER=0; exec vllm serve -tp 2 {m}",
    "VLLM_USE_V2_MODEL_RUNNER=0\nexport VLLM_USE_V2_MODEL_RUNNER && nohup vllm serve {m} -tp 2 > log 2>&1 &",
    "sudo -E env VLLM_USE_V2_MODEL_RUNNER=0 python3 -m vllm.entrypoints.openai.api_server --model {m} -tp 2",
    "VLLM_USE_V2_MODEL_RUNNER=0 python3.12 -u -m vllm.entrypoints.openai.api_server -tp 2 --model={m}",
    "docker run --rm -it --gpus all -v ~/.cache:/root/.cache -p 8000:8000 --ipc=host "
    "-e VLLM_USE_V2_MODEL_RUNNER=0 vllm/vllm-openai:v0.25.1 --model {m} --tensor-parallel-size 2",
    "sudo docker run --env=VLLM_USE_V2_MODEL_RUNNER=0 --entrypoint vllm vllm/vllm-openai:v0.25.1 "
    "serve {m} -tp 2",
    "podman run --env VLLM_USE_V2_MODEL_RUNNER=0 reg.io/a/vllm:v0.25.1-cu129 serve {m} -tp 2",
    "timeout 60 bash -c 'export VLLM_USE_V2_MODEL_RUNNER=0; exec vllm serve {m} -tp 2'",
    "TP=2\nVLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} \\\n  --tensor-parallel-size ${{TP:-8}}  # as before\n",
    "docker run --gpus=all -e VLLM_USE_V2_MODEL_RUNNER=0 docker.io/vllm/vllm-openai:v0.25.1 {m} -tp 2",
    "apptainer run --nv x.sif env VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2",
    "VLLM_USE_V2_MODEL_RUNNER=0 singularity run --nv docker://vllm/vllm-openai:v0.25.1 --model {m} -tp 2",
    "VLLM_USE_V2_MODEL_RUNNER=0 srun --gpus 2 -N 1 vllm serve {m} -tp 2",
    "VLLM_USE_V2_MODEL_RUNNER=0 nsys profile -o out python3 -m vllm.entrypoints.cli.main serve {m} -tp 2",
    "VLLM_USE_V2_MODEL_RUNNER=0 opentelemetry-instrument vllm serve {m} -tp 2",
    "tmux new-session -d -s llm 'VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2'",
    'ssh -i key me@host "cd x && VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2"',
    "kubectl exec -it pod -- bash -lc 'VLLM_USE_V2_MODEL_RUNNER=0 exec vllm serve {m} -tp 2'",
    "eval 'VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2'",
    "docker exec -d c env VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {m} -tp 2",
    "ssh host docker run -e VLLM_USE_V2_MODEL_RUNNER=0 vllm/vllm-openai:v0.25.1 --model {m} -tp 2",
    "vllm() {{ :; }}\nVLLM_USE_V2_MODEL_RUNNER=0 uv run vllm serve {m} -tp 2 | tee out",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_around_a_command(llama: str, command: str) -> None:
    verdict = _select("0.25.1", command.format(m=shlex.quote(llama)))
    assert (verdict.runner, verdict.decided_by, verdict.unread) == ("v1", "forced-v1", ())
    assert verdict.config.parallel_config.tensor_parallel_size == 2
    assert verdict.environment is not None
    assert verdict.environment.override == "v1"


def test_a_variable_that_is_unset_does_not_force(llama: str) -> None:
    command = f"export VLLM_USE_V2_MODEL_RUNNER=0\nunset VLLM_USE_V2_MODEL_RUNNER\nvllm serve {llama}"
    assert _select("0.25.1", command).decided_by == "preferred"
    forced = Environment(has_triton=True, platform="cuda", override="v1")
    command = f"env -u VLLM_USE_V2_MODEL_RUNNER vllm serve {llama}"
    assert select_runner(command, rulebook="vllm/0.25.1", environment=forced).decided_by == "preferred"
    with pytest.raises(ConfigError, match="VLLM_USE_V2_MODEL_RUNNER"):
        _select("0.25.1", f"VLLM_USE_V2_MODEL_RUNNER=yes vllm serve {llama}")


@pytest.mark.parametrize(
    ("flag", "refused"),
    [
        *((flag, False) for flag in ("-O3", "-O=0", "-O 1", "--optimization-level 2", "-O $LEVEL")),
        *((flag, True) for flag in ("-O.mode=3", "-O5", "-O '{\"level\": 3}'", "-Odecode", "-O")),
    ],
)
def test_optimization_levels_are_those_that_vllm_has(llama: str, flag: str, refused: bool) -> None:
    refusals = _select("0.33.0", f"vllm serve {llama} {flag}").refusals
    assert [refusal.feature.split()[0] for refusal in refusals] == ["--optimization-level"] * refused


@pytest.mark.parametrize(
    ("before", "process", "refused"),
    [
        ("", (), True),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", (), False),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=True", (), False),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=0", (), True),
        ("", ("VLLM_ALLOW_LONG_MAX_MODEL_LEN",), False),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=0", ("VLLM_ALLOW_LONG_MAX_MODEL_LEN",), True),
        ("env -u VLLM_ALLOW_LONG_MAX_MODEL_LEN", ("VLLM_ALLOW_LONG_MAX_MODEL_LEN",), True),
    ],
)
def test_the_variable_that_allows_longer_sequences(
    llama: str, before: str, process: tuple[str, ...], refused: bool
) -> None:
    machine = Environment(has_triton=True, platform="cuda", variables=process)
    command = f"{before} vllm serve {llama} --max-model-len 10M"
    verdict = select_runner(command, rulebook="vllm/0.30.0", environment=machine)
    assert [refusal.rule for refusal in verdict.refusals] == ["max-model-len"] * refused


def test_words_are_read_like_text(llama: str) -> None:
    text = f"docker run -e VLLM_USE_V2_MODEL_RUNNER=0 vllm/vllm-openai:v0.24.0 --model {llama}"
    assert _select("0.25.1", shlex.split(text)) == _select("0.25.1", text)
    assert any("image is vLLM 0.24.0" in said for said in _select("0.25.1", text).assumptions)
    found = CliRunner().invoke(
        app, ["select", "--rulebook", "vllm/0.25.1", "--assume-gpu", "--json", "--", *shlex.split(text)]
    )
    assert json.loads(found.stdout)["decided_by"] == "forced-v1"


@pytest.mark.parametrize(
    ("flags", "unread"),
    [
        ("--tensor-parallel-size $TP", "--tensor-parallel-size: $TP is not known here"),
        ("--config-format mistral", "--config-format: what it does to the choice is not modelled"),
        ('"$@"', "$@: more arguments, which are not known here"),
        ("$EXTRA_ARGS", "$EXTRA_ARGS: more arguments, which are not known here"),
        ("--made-up 3", "--made-up: no flag of vLLM 0.33.0 that is known here"),
    ],
)
def test_what_is_not_understood_is_in_the_verdict(llama: str, flags: str, unread: str) -> None:
    verdict = _select("0.33.0", f"vllm serve {llama} {flags}")
    assert verdict.unread == (unread,)
    assert unread in "\n".join(verdict.explain().splitlines()[:4])
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_overrides_of_the_configuration_are_applied(llama: str, tmp_path: Path) -> None:
    assert _select("0.22.0", f"vllm serve {llama}").runner == "v1"
    overrides = json.dumps({"architectures": ["Qwen3ForCausalLM"], "num_experts": 4})
    for flags in (f"--hf-overrides '{overrides}'", "--hf-overrides.architectures+ Qwen3ForCausalLM"):
        verdict = _select("0.22.0", f"vllm serve {llama} {flags}")
        assert (verdict.runner == "v2") is ("num_experts" not in flags)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    )
    assert _select("0.22.0", f"vllm serve {llama} --hf-config-path {elsewhere}").runner == "v2"


def test_the_shell_parts() -> None:
    text = """
    A=1 B="two words"            # a comment; vllm serve no
    export C='$A'
    echo "$A ${B} ${D:-d} \\$A" '$B' $(date; vllm serve no) `x`
    cat > file <<'END'
    vllm serve no
END
    if [ -n "$A" ]; then run $B "$B" ; fi
    C= last
    """
    found = [(command.words, dict(command.environ)) for command in simple_commands(text)]
    assert found == [
        (("echo", "1 two words d $A", "$B", "$(date; vllm serve no)", "`x`"), {"C": "$A"}),
        (("cat",), {"C": "$A"}),
        (("[", "-n", "1", "]"), {"C": "$A"}),
        (("run", "two", "words", "two words"), {"C": "$A"}),
        (("last",), {"C": ""}),
    ]
    with pytest.raises(ConfigError, match="can't be split"):
        list(simple_commands("a 'b"))


def test_images() -> None:
    assert image_release("vllm/vllm-openai:v0.25.1") == "0.25.1"
    assert image_release("localhost:5000/vllm:0.30.0-cu129@sha256:00ff") == "0.30.0"
    assert image_release("vllm/vllm-openai:latest") is image_release("vllm/vllm-openai") is None
    names = {
        "vllm/vllm-openai": True,
        "ghcr.io/llm-d/llm-d-cuda:v1": False,
        "rocm/vllm-dev:x": True,
        "redis": False,
    }
    assert {name: is_vllm_image(name) for name in names} == names
    assert not list(
        invocations("docker run vllm/vllm-openai bash; docker run vllm/vllm-openai:v1 /bin/sh -c ls")
    )
    assert not list(invocations("docker run rocm/vllm ./bench; echo vllm serve m; pkill -f 'vllm serve m'"))
    assert not list(invocations("docker run redis --model x; docker build -t vllm . ; vllm bench serve m"))


@given(
    st.text(alphabet=" ab$\\'\"`{}()=;&|<>#\n-\t*", max_size=40),
    st.sampled_from(["", "vllm serve m ", "docker run vllm "]),
)
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused_by_name(text: str, before: str) -> None:
    try:
        found = list(invocations(before + text))
    except ConfigError:
        return
    assert all(isinstance(word, str) for invocation in found for word in invocation.arguments)


@given(st.lists(st.text(max_size=8), max_size=5))
@settings(max_examples=200, deadline=None)
def test_quoted_words_come_back(words: list[str]) -> None:
    text = " ".join(["run", *(shlex.quote(word) for word in words)])
    assert [command.words for command in simple_commands(text)] == [("run", *words)]


def test_what_is_read_is_not_named_as_not_understood() -> None:
    assert COULD_DECIDE.isdisjoint(ARGUMENTS)
