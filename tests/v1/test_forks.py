"""A fork of a whole engine that has a KV connector or drafts: the child is told and holds nothing up, and the
parent goes on with its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.engine.test_boundaries import in_child
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import storage

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROMPTS = [list(range(5, 45)), [7, 9, 11] * 8]
SIZES = {
    "device": "cpu", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 4, "max_model_len": 96,
    "num_gpu_blocks_override": 40, "enable_prefix_caching": False,
}  # fmt: skip
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SUFFIX = {"method": "suffix", "num_speculative_tokens": 3, "suffix_decoding_max_cached_requests": 0}
EAGLE3 = {
    "method": "eagle3",
    "model": str(CHECKPOINTS / "qwen3-eagle3"),
    "num_speculative_tokens": 3,
}


def settings(name: str, folder: Path) -> dict[str, Any]:
    if name == "offloading":
        return {"kv_offloading_size": 0.01, "kv_offloading_backend": "native", "speculative_config": NGRAM}
    if name == "shared storage":
        return {**storage(folder), "speculative_config": SUFFIX}
    if name == "shared memory":
        return {**memory(folder, "kv_both"), "speculative_config": NGRAM}
    return {"speculative_config": EAGLE3}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["offloading", "shared storage", "shared memory", "a draft head"])
def test_a_fork_beside_connectors_and_drafts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    with LLM(CHECKPOINTS / "qwen3", **SIZES, **settings(name, tmp_path / "kv")) as llm:
        expected = [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, GREEDY)]
        stream = llm.stream(PROMPTS[0], GREEDY.replace(max_tokens=40))
        next(stream)

        def act() -> str:
            found = []
            for call in (
                lambda: llm.generate(PROMPTS, GREEDY), lambda: list(llm.stream(PROMPTS[0], GREEDY)),
                lambda: next(stream), lambda: llm.collective_rpc("sleep"), llm.draft_stats, llm.sleep,
                llm.reload_weights,
            ):  # fmt: skip
                with pytest.raises(Exception, match="another process") as raised:
                    call()
                found.append(type(raised.value).__name__)
            llm.abort("x")
            stream.close()
            llm.shutdown()
            llm._client._finalizer()  # as at the interpreter's end
            return " ".join(sorted(set(found)))

        assert in_child(act) == "EngineDeadError"
        for kv in (tmp_path / "kv").glob("*.kv"):
            assert kv.stat().st_size
        assert sum(len(piece.outputs[0].token_ids) for piece in stream) > 20
        outputs = llm.generate(PROMPTS, GREEDY)
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
        if name in ("offloading", "shared storage"):
            assert [output.num_cached_tokens for output in outputs] == [36, 20]
