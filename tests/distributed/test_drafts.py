"""Drafts where ranks share the target: the tokens of one rank without drafts, and on every step the drafts of
one rank with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import train_heads
from checkpoints.heads import RECIPES, head_configuration, save_head
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.head_config import read_head_config
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.drafting.head import DraftHead
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1 import capabilities
from dodona.runners.v1.drafting.hidden_states import HiddenStates
from dodona.runners.v1.drafting.lookup import LookupDrafter
from dodona.runners.v1.drafting.sequential import SequentialDrafter
from dodona.runners.v1.pipeline_parallel import take_stage
from dodona.runners.v1.runner import V1Runner
from tests.distributed.thread_workers import use_threads
from tests.support import every_family, ranks_table
from tests.support.thread_ranks import run_ranks
from tests.support.tiny_models import VOCAB_SIZE

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
TARGET = ModelInfo.load(QWEN3)
CPU = Environment(has_triton=False, platform="cpu")
PP, TP, PCP = "pipeline_parallel_size", "tensor_parallel_size", "prefill_context_parallel_size"
STAGED_TYPES = sorted(ranks_table.served_types("PP 2"))
DRAFTS = 4
PROMPTS = [[5 + (i * 37 + j * j) % 370 for j in range(n)] for i, n in enumerate((2, 11, 7, 30, 5))]
PROMPTS.append(PROMPTS[3][:26])
NEW_TOKENS = 12
SIZES = {"max_num_batched_tokens": 24, "block_size": 4, "num_gpu_blocks_override": 14, "max_model_len": 52}
"""Prompts come in chunks, and the blocks do not suffice for all."""

KINDS: Mapping[str, dict[str, Any]] = {
    "eagle3": {"method": "eagle3"},
    "eagle3-speculators": {"method": "eagle3"},  # without an embedding
    "peagle": {"method": "eagle3", "parallel_drafting": True},
    "eagle": {"method": "eagle"},
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory, reference: Any) -> Path:
    """One of each kind. Those of EAGLE3's family have learned what the target says after `PROMPTS`, with the
    target's embedding."""
    folder, plain = tmp_path_factory.mktemp("heads"), reference(QWEN3)
    texts = [[*prompt, *plain.generate(prompt, NEW_TOKENS)] for prompt in PROMPTS]
    targets = torch.arange(320)  # tokens beyond are never drafted
    for recipe in RECIPES.values():
        head: DraftHead | None = None
        for name, form in recipe.folders.items():
            kind = name.removeprefix("qwen3-")
            raw = head_configuration(recipe, plain.model.config, form=form, mask_token_id=379)
            save_head(folder / kind, raw, {}, targets, form=form)
            if head is None:
                config = read_head_config(
                    folder / kind, method="eagle3", parallel=recipe.parallel, target=TARGET
                )
                head = trained(config, plain.model, texts)
            tensors = dict(head.state_dict())
            if form == "speculators" and not recipe.parallel:
                del tensors["embed_tokens.weight"]
            save_head(folder / kind, raw, tensors, targets, form=form)
    eagle = {
        "architectures": ["LlamaForCausalLMEagle"], "model_type": "llama", "hidden_size": 128,
        "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 380, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "eagle").mkdir()
    (folder / "eagle" / "config.json").write_text(json.dumps(eagle))
    config = read_head_config(folder / "eagle", method="eagle", parallel=False, target=TARGET)
    tensors = dict(DraftHead(config).state_dict())
    # What the target computed last, so that the first draft is the token before it.
    tensors["fc.weight"] = torch.cat([0.05 * torch.randn(128, 128), torch.eye(128)], dim=1)
    del tensors["lm_head.weight"], tensors["embed_tokens.weight"]
    save_file(tensors, folder / "eagle" / "model.safetensors")
    return folder


def trained(config: Any, target: Any, texts: Sequence[Sequence[int]]) -> DraftHead:
    width = max(map(len, texts)) + train_heads.NEW_TOKENS
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    starts = lengths - NEW_TOKENS
    hidden_states = HiddenStates(target, config.layer_ids)
    with torch.no_grad():
        logits = target(input_ids=ids, use_cache=False).logits
        hidden = hidden_states.batched()
    torch.manual_seed(0)
    head = DraftHead(config)
    head.embed_tokens.load_state_dict(target.get_input_embeddings().state_dict())
    head.embed_tokens.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        loss = torch.stack(train_heads.depth_losses(head, ids, starts, lengths, hidden, logits)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def speculative(heads: Path, kind: str) -> dict[str, Any]:
    if kind == "ngram":
        return {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 3,
                "prompt_lookup_min": 1}  # fmt: skip
    if kind == "draft_model":
        return {"method": "draft_model", "model": str(QWEN3), "num_speculative_tokens": DRAFTS}
    return {"model": str(heads / kind), "num_speculative_tokens": DRAFTS, **KINDS[kind]}


class Ran(NamedTuple):
    tokens: list[list[int]]
    drafted: dict[tuple[int, ...], tuple[int, ...]]
    """What was proposed after which tokens."""
    stats: DraftStats


class Runs:
    """Runs of all prompts, then of two of them that are in the prefix cache."""

    def __init__(self, heads: Path) -> None:
        self._heads = heads
        self._alone: dict[str, Ran] = {}

    def alone(self, kind: str) -> Ran:
        """On one rank; kind "none" is without drafts."""
        if kind not in self._alone:
            self._alone[kind] = self.run(kind)
        return self._alone[kind]

    def run(self, kind: str, **sizes: int) -> Ran:
        with drafted() as seen, self.engine(kind, **sizes) as llm:
            tokens = [*generate(llm, PROMPTS), *generate(llm, PROMPTS[:2])]
            if not sizes and kind in ("none", "eagle3"):
                assert llm._client.call(lambda _, scheduler: scheduler.num_preemptions) > 0
            return Ran(tokens, seen, llm.draft_stats())

    @contextmanager
    def engine(self, kind: str, *, threads: bool = True, **flat: Any) -> Iterator[LLM]:
        settings = {"device": "cpu", "dtype": "float32", "seed": 0, **SIZES, **flat}
        if kind != "none":
            settings["speculative_config"] = speculative(self._heads, kind)
        verdict = select_runner(EngineConfig.from_flat(str(QWEN3), **settings), environment=CPU)
        assert verdict.runner == "v1"
        with pytest.MonkeyPatch.context() as patch:
            if threads:
                use_threads(patch)
            with LLM.from_verdict(verdict) as llm:
                yield llm


def generate(llm: LLM, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@contextmanager
def drafted() -> Iterator[dict[tuple[int, ...], tuple[int, ...]]]:
    """What drafters of this process propose, by the tokens before it."""
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}

    def noting(propose: Any) -> Any:
        def note(drafter: Any, contexts: Any) -> Any:
            found = propose(drafter, contexts)
            for c in contexts:
                if c.row in found and not c.state.request.request_id.startswith("__dodona"):
                    seen[tuple(c.state.tokens(0, c.end + 1))] = tuple(found[c.row])
            return found

        return note

    with pytest.MonkeyPatch.context() as patch:
        for drafter in (LookupDrafter, SequentialDrafter):
            patch.setattr(drafter, "propose", noting(drafter.propose))
        yield seen


@pytest.fixture(scope="module")
def runs(heads: Path) -> Runs:
    return Runs(heads)


@pytest.mark.parametrize(
    ("kind", "stages"),
    [("eagle3", 2), ("eagle3-speculators", 3), ("peagle", 2), ("eagle", 2), ("ngram", 2), ("draft_model", 2)],
)
def test_stages_draft_as_one_rank(runs: Runs, kind: str, stages: int) -> None:
    """After a text the same is drafted; steps are of other requests, so that a draft may lack blocks."""
    found, alone = runs.run(kind, **{PP: stages}), runs.alone(kind)
    assert found.tokens == runs.alone("none").tokens
    common = found.drafted.keys() & alone.drafted.keys()
    assert len(common) >= 0.9 * len(alone.drafted)
    assert all(found.drafted[text] == alone.drafted[text] for text in common)
    check_acceptance(found.stats, alone.stats)


def check_acceptance(found: DraftStats, alone: DraftStats) -> None:
    """Requests arrive while steps run, so that two runs of one engine may differ by a few drafts."""
    assert alone.num_accepted_tokens > 0
    assert abs(found.num_accepted_tokens - alone.num_accepted_tokens) <= max(
        1, 0.1 * alone.num_accepted_tokens
    )
    assert abs(found.num_draft_tokens - alone.num_draft_tokens) <= 0.1 * alone.num_draft_tokens


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("eagle3", {PCP: 2}),
        ("peagle", {TP: 2}),
        ("eagle", {TP: 2, PCP: 2}),
        ("draft_model", {TP: 2}),
        ("ngram", {PCP: 2}),
        ("eagle3", {PP: 2, PCP: 2}),
        ("eagle3-speculators", {PP: 2, TP: 2}),
    ],
    ids=str,
)
def test_ranks_that_share_layers_and_prompts_draft(runs: Runs, kind: str, sizes: dict[str, int]) -> None:
    """Sums over ranks round otherwise than one rank's, so that some drafts may differ."""
    found, alone = runs.run(kind, **sizes), runs.alone(kind)
    assert found.tokens == runs.alone("none").tokens
    same = sum(found.drafted.get(text) == drafts for text, drafts in alone.drafted.items())
    assert same >= 0.9 * len(alone.drafted) > 0
    check_acceptance(found.stats, alone.stats)


def test_replicas_draft(runs: Runs) -> None:
    found = runs.run("eagle3", data_parallel_size=2)
    assert found.tokens == runs.alone("none").tokens
    assert found.stats.num_accepted_tokens > 0


def test_memory_and_weights_of_an_engine_whose_last_stage_drafts(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has the target's embedding, which the last stage keeps for it."""
    plain, alone = runs.alone("none"), runs.alone("eagle3-speculators")
    free = 1 << 22
    monkeypatch.setattr(V1Runner, "determine_available_memory", lambda _: free)
    with runs.engine("eagle3-speculators", **{PP: 2}) as llm:
        first, last = llm.collective_rpc("get_kv_cache_spec")
        assert (len(first.layers), len(last.layers)) == (2, 2)  # of the target; one, and the head's
        assert first.state_bytes_per_row == 0 < last.state_bytes_per_row
        rows, reported = llm._client.call(lambda r, _: (r.limits.max_num_seqs, r.get_kv_cache_spec()))
        available = llm._client.call(lambda runner, _: runner.determine_available_memory())
        blocks = (available - rows * reported.state_bytes_per_row) // reported.bytes_per_block
        taken = [blocks * s.bytes_per_block + rows * s.state_bytes_per_row for s in (first, last)]
        assert max(taken) <= free < max(taken) + reported.bytes_per_block

        def check() -> int:
            before = llm.draft_stats().num_accepted_tokens
            assert generate(llm, PROMPTS) == plain.tokens[: len(PROMPTS)]
            return llm.draft_stats().num_accepted_tokens - before

        accepted = check()
        assert 0 < accepted <= alone.stats.num_accepted_tokens
        llm.reload_weights()
        assert check() >= 0.8 * accepted
        llm.sleep(level=2)
        llm.wake_up()
        llm.reload_weights()
        assert check() >= 0.8 * accepted


def test_a_draft_model_need_not_be_split_as_its_target() -> None:
    raw = {
        **json.loads((QWEN3 / "config.json").read_text()),
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "num_key_value_heads": 1,
    }
    config = EngineConfig.from_flat(str(QWEN3), device="cpu", **{PP: 3, TP: 2})
    draft = ModelInfo.from_mapping({**raw, "architectures": ["GPT2LMHeadModel"]})
    assert capabilities.check_supported(config, draft, CPU)
    assert not capabilities.lacks_of_draft(config, draft, environment=CPU)


@pytest.mark.parametrize("model_type", STAGED_TYPES)
def test_the_last_stage_sees_the_states_of_every_type(model_type: str) -> None:
    ids = torch.arange(3, 14)[None] % VOCAB_SIZE
    whole, *stages = (every_family.make_model(every_family.tiny_config(model_type)) for _ in range(3))
    count = whole.config.get_text_config(decoder=True).num_hidden_layers
    layer_ids = (0, count // 2, count)

    def compute(model: Any, mesh: Any) -> torch.Tensor | None:
        take_stage(model, mesh.pipeline)
        hidden = HiddenStates(model, layer_ids, mesh)
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
        return hidden.last() if mesh.samples else None

    expected = HiddenStates(whole, layer_ids)
    with torch.inference_mode():
        whole(input_ids=ids, use_cache=False)
    _, last = run_ranks(RankSizes(2, 1, 1), lambda mesh: compute(stages[mesh.rank], mesh))
    assert torch.equal(last, expected.last())
    assert last.shape[-1] == 3 * whole.config.get_text_config(decoder=True).hidden_size


@pytest.mark.slow
def test_processes_draft_as_one_rank(runs: Runs) -> None:
    with runs.engine("eagle3-speculators", threads=False, **{PP: 2}) as llm:
        tokens = [*generate(llm, PROMPTS), *generate(llm, PROMPTS[:2])]
        check_acceptance(llm.draft_stats(), runs.alone("eagle3-speculators").stats)
    assert tokens == runs.alone("none").tokens
