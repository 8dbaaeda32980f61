"""Drafts on V2's device: heads of both formats and draft models, against dense references and decoding
without."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from dodona.kernels.attention.arguments import AttentionShape
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.head_config import read_head_config
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.drafting.head import DraftHead
from dodona.runners.drafting.load_head import load_head
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2.attention import Attention, SmallBatchAttention
from dodona.runners.v2.drafting.head_layers import HeadLayers
from dodona.runners.v2.runner import V2Runner
from tests.v2.drive import DEVICE, GREEDY, EagerGraphs, generate, make_runner, set_graphs
from tests.v2.test_greedy_tokens import prompts_of
from tests.v2.test_speculation import LENGTHS, STAGES, assert_equal

SMALL = {"head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
TARGET = {**SMALL, "num_hidden_layers": 2}
DRAFTS = 3
MIXED = [
    SamplingParams(temperature=0.0, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=5, frequency_penalty=0.4, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=6, ignore_eos=True),
]
LAYERS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 131, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "rope_theta": 10000.0,
}  # fmt: skip
SEEN = {"draft_vocab_size": 90, "eagle_aux_hidden_state_layer_ids": [0, 1]}
KINDS: dict[str, dict[str, Any]] = {
    "eagle": LAYERS,
    "eagle3": {**LAYERS, **SEEN},
    "peagle": {
        **SEEN, "speculators_model_type": "peagle", "transformer_layer_config": LAYERS, "mask_token_id": 130,
        "norm_before_residual": True,
    },
}  # fmt: skip


class Head:
    """A head of random weights, and its drafts over whole sequences without a cache."""

    def __init__(self, kind: str, target: Path, folder: Path) -> None:
        method = "eagle" if kind == "eagle" else "eagle3"
        self.speculative = {
            "method": method, "model": str(folder), "num_speculative_tokens": DRAFTS,
            "parallel_drafting": kind == "peagle",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(KINDS[kind]))
        config = read_head_config(
            folder, method=method, parallel=kind == "peagle", target=ModelInfo.load(target)
        )
        generator = torch.Generator().manual_seed(7)
        tensors = {
            name: torch.randn(value.shape, generator=generator) * 0.3 + (value.dim() == 1)
            for name, value in DraftHead(config).state_dict().items()
        }
        if kind == "eagle":
            del tensors["lm_head.weight"]  # it has the target's
        else:
            targets = torch.randperm(131, generator=generator)[:90].sort().values
            tensors["d2t"] = targets - torch.arange(90)
        save_file(tensors, folder / "model.safetensors")
        self.model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        device = torch.device("cpu")
        self.head = load_head(folder, config, self.model, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def drafts(self, token_ids: Sequence[int]) -> list[int]:
        """Greedy drafts after these tokens, of which the target has computed all but the last."""
        head, ids = self.head, torch.tensor([list(token_ids)])
        states = self.model(ids[:, :-1], output_hidden_states=True).hidden_states
        layer_ids = head.head.layer_ids or (-1,)
        features = head.features(torch.cat([states[layer] for layer in layer_ids], dim=-1))
        ids = ids[:, 1:]
        if head.head.is_parallel:
            masks = torch.full((1, DRAFTS - 1), head.head.mask_token_id or 0)
            mask = head.features(head.mask_hidden).expand(1, DRAFTS - 1, -1)
            output = self._run(torch.cat([ids, masks], 1), torch.cat([features, mask], 1))
            return head.logits(output[0, -DRAFTS:]).argmax(-1).tolist()
        drafts: list[int] = []
        for _ in range(DRAFTS):
            output = self._run(ids, features)
            drafts.append(int(head.logits(output[0, -1:]).argmax()))
            ids = torch.cat([ids, torch.tensor([drafts[-1:]])], 1)
            features = torch.cat([features, head.next_features(output[:, -1:])], 1)
        return drafts

    def _run(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scores = q @ k.transpose(2, 3) * self.head.scaling
            unseen = torch.ones(scores.shape[-2:], device=q.device).triu(1).bool()
            return (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v).transpose(1, 2)

        return self.head(ids, features, torch.arange(ids.shape[1], device=ids.device)[None], attend)


BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_compute_what_the_heads_torch_does(
    kind: str, dtype: torch.dtype, tiny_models, tmp_path: Path
) -> None:
    """Entries of one row at once, as those of its drafts, then one after the other. Where they round,
    V2 is at most twice as far from float32 with the same weights as torch is."""
    made = Head(kind, tiny_models.path("qwen3", **TARGET), tmp_path)
    device = torch.device(DEVICE)
    head = made.head.prepare(dtype, device)
    for borrowed in (head.lm_head, head.embed_tokens):  # which may be the target's
        borrowed.to(dtype)
    exact = copy.deepcopy(head).float()
    layers = HeadLayers(head, AttentionShape(2, 1, 16, head.scaling), max_positions=40, dtype=dtype)
    caches = [torch.zeros((4, 2, 1, 16, 16), dtype=dtype, device=device)] * head.head.num_layers
    count, generator = 5, torch.Generator().manual_seed(2)

    def inputs(token_ids: torch.Tensor, first: int) -> ForwardInputs:
        count = len(token_ids)
        places = torch.arange(first, first + count, dtype=torch.int32, device=device)
        return ForwardInputs(
            input_ids=token_ids, positions=places, slots=places + 32,
            rows=torch.zeros_like(places), query_start=torch.arange(count + 1, device=device).int(),
            seq_lens=places + 1, block_table=torch.tensor([[2]], dtype=torch.int32, device=device),
            arrivals=torch.zeros(count, dtype=torch.int32, device=device), num_decodes=count,
            max_fresh_len=0, max_continued_len=0, has_drafts=count > 1,
        )  # fmt: skip

    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("known", "torch", "at once", "one by one")}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in ("known", "torch", "one by one")}
    for _ in range(4):
        token_ids = torch.randint(0, 131, (count,), generator=generator).int().to(device)
        features = torch.randn((count, 32), generator=generator).to(dtype).to(device)
        made.head = head
        found["torch"].append(made._run(token_ids[None].long(), features[None])[0])
        logits["torch"].append(head.draft_logits(found["torch"][-1]))
        made.head = exact
        found["known"].append(made._run(token_ids[None].long(), features[None].float())[0])
        logits["known"].append(exact.draft_logits(found["known"][-1]))
        found["at once"].append(layers.forward(inputs(token_ids, 0), token_ids, features.clone(), caches))
        for place in range(count):
            own = token_ids[place : place + 1]
            one = layers.forward(inputs(own, place), own, features[place : place + 1].clone(), caches)
            found["one by one"].append(one)
            logits["one by one"].append(layers.logits(one))
    for values in (found, logits):
        joined = {name: torch.cat(parts).float() for name, parts in values.items()}
        known = joined.pop("known")
        rounding = 1e-5 * known.norm() + 2 * (joined.pop("torch") - known).norm()
        for name, value in joined.items():
            assert (value - known).norm() < rounding, name


def drafts_of(
    runner: V2Runner, prompts: list[list[int]], count: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens of a request, its drafts as the token history has them) after each step that yielded some."""
    budget = runner.config.scheduler_config.max_num_batched_tokens or 64
    scheduler = Scheduler(
        num_blocks=40, block_size=16, max_num_seqs=4, max_num_batched_tokens=budget,
        num_speculative_tokens=runner.num_speculative_tokens,
    )  # fmt: skip
    requests = [
        Request(f"r{i}", list(p), GREEDY, seed=i, limit=len(p) + count) for i, p in enumerate(prompts)
    ]
    for request in requests:
        scheduler.add(request)
    while (step := scheduler.schedule()) is not None:
        runner.execute_model(step.output)
        result = runner.sample_tokens().result()
        scheduler.update(step, result)
        for request, row in zip(step.sampling, result.rows, strict=True):
            if request.draft_token_ids:
                first = len(request.token_ids)
                history = runner.ready.state.token_ids[row, first : first + DRAFTS]
                yield list(request.token_ids), history.tolist()


@pytest.mark.parametrize(
    ("kind", "padded"), [("eagle", False), ("eagle3", True), ("peagle", False), ("peagle", True)]
)
def test_heads_draft_what_they_would_without_a_cache(
    kind: str, padded: bool, tiny_models, tmp_path: Path
) -> None:
    """A chunked prompt beside one that decodes; drafts are rejected, since the heads are random."""
    path = tiny_models.path("qwen3", **TARGET)
    head = Head(kind, path, tmp_path)
    runner = make_runner(path, max_num_batched_tokens=9, max_num_seqs=2, speculative_config=head.speculative)
    if padded:
        ready = runner.ready
        sizes: dict[str, Any] = {"decodes": (2,), "prompts": (9,), "drafts": (8,)}
        set_graphs(runner, EagerGraphs(ready.steps, **sizes, step_drafts=ready.drafts))
    found = list(drafts_of(runner, [[7, 30, 41], list(range(20, 34))], 3))
    assert len(found) >= 3
    for tokens, drafts in found:
        assert drafts == head.drafts(tokens)


@pytest.mark.parametrize("padded", [False, True])
def test_a_draft_model_that_is_the_target_is_always_right(padded: bool, tiny_models) -> None:
    path, prompts = tiny_models.path("qwen3", **SMALL), prompts_of(14, 30, 3)
    plain = generate(make_runner(path), prompts, max_tokens=9, params=MIXED)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 3}
    runner = make_runner(path, speculative_config=speculative, max_num_batched_tokens=24)
    if padded:
        ready = runner.ready
        sizes: dict[str, Any] = {"decodes": (4,), "prompts": (), "drafts": (8, 16)}
        set_graphs(runner, EagerGraphs(ready.steps, **sizes, step_drafts=ready.drafts))
    run = generate(runner, prompts, max_tokens=9, params=MIXED, num_blocks=5, enable_prefix_caching=True)
    assert run.outputs == plain.outputs
    stats = run.scheduler.draft_stats
    # Penalties count when drafts are verified, not when they are drawn.
    assert stats.num_draft_tokens > 10
    assert stats.num_accepted_tokens > 0.6 * stats.num_draft_tokens
    assert run.steps < plain.steps


@pytest.mark.parametrize("kind", KINDS)
def test_steps_ahead_with_every_stage(kind: str, tiny_models, tmp_path: Path) -> None:
    """Two steps under way, chunks of prompts beside rows whose steps are unread, preemption, penalties,
    log-probabilities and stop tokens: the tokens of decoding without drafts. Heads are mostly wrong; a draft
    model, in the place of EAGLE's, is mostly right."""
    path, prompts = tiny_models.path("qwen3", **TARGET), prompts_of(14, 30, 15)
    plain = generate(make_runner(path), prompts, max_tokens=LENGTHS, params=STAGES)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 3}
    if kind != "eagle":
        speculative = Head(kind, path, tmp_path).speculative
    for padded in (False, True):
        runner = make_runner(path, speculative_config=speculative, max_num_batched_tokens=24)
        assert (runner.num_device_drafts, runner.max_steps_in_flight) == (3, 2)
        if padded:
            sizes: dict[str, Any] = {"decodes": (4,), "prompts": (), "drafts": (8, 16)}
            set_graphs(runner, EagerGraphs(runner.ready.steps, **sizes, step_drafts=runner.ready.drafts))
        run = generate(
            runner, prompts, max_tokens=LENGTHS, params=STAGES, num_blocks=5, enable_prefix_caching=True
        )
        assert_equal(run, plain)
        assert run.scheduler.draft_stats.num_draft_tokens > 10
        assert run.most_unread == 2


def test_few_entries_attend_over_the_projection(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts by the attention that bfloat16 on a GPU has, in steps with padding."""
    plan, chosen = Attention.plan, set[type]()

    def plan_small_batch(self: Attention, inputs: ForwardInputs) -> Any:
        if not inputs.has_drafts or inputs.max_prefill_len:
            return plan(self, inputs)
        attention = self.plan_small_batch(inputs, leave_parts=False)
        chosen.add(type(attention))
        return attention

    path, prompts = tiny_models.path("qwen3", **SMALL), prompts_of(14, 30, 3)
    plain = generate(make_runner(path), prompts, max_tokens=9, params=MIXED)
    monkeypatch.setattr(Attention, "plan", plan_small_batch)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 3}
    runner = make_runner(path, speculative_config=speculative, max_num_batched_tokens=24)
    sizes: dict[str, Any] = {"decodes": (4,), "prompts": (), "drafts": (8, 16)}
    set_graphs(runner, EagerGraphs(runner.ready.steps, **sizes, step_drafts=runner.ready.drafts))
    run = generate(runner, prompts, max_tokens=9, params=MIXED, num_blocks=5, enable_prefix_caching=True)
    assert run.outputs == plain.outputs
    assert chosen == {SmallBatchAttention}
    assert run.scheduler.draft_stats.num_accepted_tokens > 5


def test_memory_counts_the_draft(tiny_models) -> None:
    path = tiny_models.path("qwen3", **SMALL)
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 3}
    plain, drafting = make_runner(path), make_runner(path, speculative_config=speculative)
    one, both = plain.get_kv_cache_spec(), drafting.get_kv_cache_spec()
    assert both.bytes_per_block == 2 * one.bytes_per_block
    assert (one.state_bytes_per_row, both.state_bytes_per_row) == (0, one.bytes_per_block)


def test_a_draft_model_of_another_architecture_is_refused(tiny_models) -> None:
    speculative = {
        "method": "draft_model",
        "model": str(tiny_models.path("gemma2")),
        "num_speculative_tokens": 2,
    }
    runner = make_runner(tiny_models.path("qwen3", **SMALL), load=False, speculative_config=speculative)
    with pytest.raises(ConfigError, match="V2 can't run this draft model, for architecture"):
        runner.load_model()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_drafters(kind: str, tiny_models, tmp_path: Path) -> None:
    """Drafting inside graphs, on a GPU: the drafts of launches one by one."""
    path = tiny_models.path("qwen3", **TARGET)
    settings = {"speculative_config": Head(kind, path, tmp_path).speculative}
    prompts = [[7, 30, 41, 12, 9], list(range(20, 41)), [5, 6, 7]]
    eager = list(drafts_of(make_runner(path, enforce_eager=True, **settings), prompts, 12))
    assert list(drafts_of(make_runner(path, **settings), prompts, 12)) == eager
