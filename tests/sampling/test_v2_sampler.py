"""V2's sampler, on state on the device, draws what the torch sampler draws from state on the host."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from dodona.kernels.sampling.logprobs import LogprobTensors
from dodona.runners.device.sampling.logprob_values import host_logprobs
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.sampling.stage import SamplingBatch
from dodona.runners.device.sampling.stages import STAGES, example_params
from dodona.runners.interface import GrammarOutput, NewRequest
from dodona.runners.sampling.reference import SamplingRow, sample
from tests.sampling.support import ENORMOUS_ROWS, grammar_words, make_row, random_row

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
MAX_ROWS, MAX_LEN = 8, 64


class Requests:
    """What a runner does around the sampler: rows, token history, and the host's view of both."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self.history = torch.zeros(MAX_ROWS, MAX_LEN, dtype=torch.int32, device=DEVICE)
        self.sampler = DeviceSampler(max_num_seqs=MAX_ROWS, vocab_size=vocab, token_ids=self.history)
        self.rows: dict[int, SamplingRow] = {}
        self.differing = 0
        """Tokens that were not the torch sampler's."""

    def add(self, state: int, row: SamplingRow) -> None:
        tokens = (*row.prompt_token_ids, *row.output_token_ids)
        self.rows[state] = row
        self.history[state] = -7  # a former request's tokens
        self.history[state, : len(tokens)] = torch.tensor(tokens, device=DEVICE)
        self.sampler.add_request(
            NewRequest(
                request_id=str(state),
                row=state,
                token_ids=tokens,
                num_prompt_tokens=len(row.prompt_token_ids),
                num_computed_tokens=0,
                block_ids=(),
                sampling_params=row.params,
                seed=row.seed,
                stop_token_ids=tuple(row.stop_token_ids),
                bad_words_token_ids=tuple(tuple(word) for word in row.bad_words_token_ids),
            )
        )

    def step(self, states: list[int], logits: torch.Tensor) -> tuple[list[int], list]:
        """Sample for these rows exactly as the torch sampler does; returns tokens and log-probabilities."""
        result = self.step_with_ties(states, logits)
        assert self.differing == 0
        return result

    def step_with_ties(self, states: list[int], logits: torch.Tensor) -> tuple[list[int], list]:
        """The same, where tokens may differ: they are counted in `differing`."""
        self.sampler.apply_staged_writes()
        rows = [self.rows[state] for state in states]
        positions = torch.tensor([row.position for row in rows], dtype=torch.int32, device=DEVICE)
        idx_mapping = torch.tensor(states, dtype=torch.int32, device=DEVICE)
        before = logits.clone()
        output = self.sampler.sample(
            logits, SamplingBatch(states, idx_mapping, positions, grammar_output(states, rows))
        )
        assert torch.equal(logits.nan_to_num(7.5), before.nan_to_num(7.5))
        tokens = output.token_ids.tolist()
        logprobs: list = [None] * len(states)
        if output.logprobs is not None:
            by_row = output.logprobs.by_row()
            assert set(by_row) <= set(states)
            logprobs = [by_row.get(state) for state in states]
        expected = sample(logits, rows)
        differing = [i for i, token in enumerate(tokens) if token != expected.token_ids[i]]
        self.differing += len(differing)
        for i, (ours, theirs) in enumerate(zip(logprobs, expected.logprobs, strict=True)):
            assert (ours is None) == (theirs is None)
            if ours is not None and i not in differing:
                assert ours.token_ids == theirs.token_ids
                assert ours.rank == theirs.rank
                assert ours.given_ranks == theirs.given_ranks
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        for state, row, token in zip(states, rows, tokens, strict=True):
            self.history[state, row.position] = token
            self.rows[state] = SamplingRow(
                row.params,
                row.prompt_token_ids,
                (*row.output_token_ids, token),
                row.seed,
                row.stop_token_ids,
                row.bad_words_token_ids,
                row.grammar_words,
            )
        return tokens, logprobs


def grammar_output(states: list[int], rows: list[SamplingRow]) -> GrammarOutput | None:
    """What the engine would give, in another order than the batch's."""
    given = [(state, row.grammar_words) for state, row in zip(states, rows, strict=True)][::-1]
    given = [(state, words) for state, words in given if words is not None]
    return GrammarOutput([state for state, _ in given], np.array([w for _, w in given])) if given else None


def _logits(rng: np.random.Generator, n: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(rng.normal(size=(n, vocab)) * 2, dtype=torch.float32, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [37, 1100])
def test_random_requests_step_by_step(vocab, dtype):
    """Mixed rows in one batch, in changing order; rows pass on to other requests, or requests resume."""
    rng = np.random.default_rng(vocab)
    requests = Requests(vocab)
    for state in range(MAX_ROWS):
        requests.add(state, random_row(rng, vocab))
    for _ in range(12):
        states = rng.permutation(MAX_ROWS)[: rng.integers(1, MAX_ROWS + 1)].tolist()
        for state in rng.permutation(MAX_ROWS)[:2].tolist():
            resumed = rng.random() < 0.3
            requests.add(state, requests.rows[state] if resumed else random_row(rng, vocab))
        requests.step(states, _logits(rng, len(states), vocab, dtype))


def example_row(stage, seed):
    """A row that asks for the stage alone."""
    example = stage.example
    row = make_row(
        seed=seed, stop=example.stop_token_ids, bad_words=example.bad_words_token_ids, **example.params
    )
    if row.params.structured_outputs is None:
        return row
    return replace(row, grammar_words=grammar_words((2, 33, 39), 40))


every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@every_stage
def test_a_stage_is_asked_for_by_its_rows_only(stage):
    requests = Requests(40)
    assert requests.sampler.asked_stages([0, 1]) == 0
    requests.add(0, make_row(seed=1))
    requests.add(1, example_row(stage, 2))
    assert requests.sampler.asked_stages([0]) == 0
    assert requests.sampler.asked_stages([0, 1]) == 1 << STAGES.index(stage)
    rng = np.random.default_rng(0)
    plain = Requests(40)
    plain.add(0, make_row(seed=1))
    for _ in range(6):
        logits = _logits(rng, 2, 40, torch.float32)
        mixed, _ = requests.step([1, 0], logits)
        alone, _ = plain.step([0], logits[1:])
        assert mixed[1] == alone[0]


def test_rows_that_ask_for_no_stage():
    """What has no effect on a row asks for nothing."""
    requests = Requests(40)
    rows = (
        {"min_tokens": 3},
        {"stop": (2, 3)},
        {"temperature": 0.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1},
        {"top_p": 1.0, "min_p": 0.0, "top_k": 0},
        {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
        {"logit_bias": {}},
    )
    for features in rows:
        requests.add(0, make_row(**features))
        assert requests.sampler.asked_stages([0]) == 0, features
    for features in ({"top_p": 0.99}, {"min_p": 0.01}, {"top_k": 1}, {"min_tokens": 1, "stop": (2,)}):
        requests.add(0, make_row(**features))
        assert requests.sampler.asked_stages([0]).bit_count() == 1, features


@every_stage
def test_a_row_keeps_nothing_of_its_former_request(stage):
    requests = Requests(40)
    rng = np.random.default_rng(1)
    requests.add(3, example_row(stage, 9))
    requests.add(4, example_row(stage, 8))
    requests.step([3, 4], _logits(rng, 2, 40, torch.float32))
    requests.add(3, make_row(seed=10))
    for _ in range(4):
        requests.step([3, 4], _logits(rng, 2, 40, torch.float32))


def test_a_stage_that_does_not_ask_ignores_lists_of_the_former_request():
    """`min_tokens` without stop tokens masks nothing, not even where another row makes the stage run."""
    requests = Requests(5)
    requests.add(0, make_row(temperature=0.0, min_tokens=3, stop=(2,)))
    requests.add(1, make_row(temperature=0.0, min_tokens=3, stop=(2,)))
    logits = torch.tensor([[0.0, 1.0, 5.0, 0.0, 0.0]] * 2, device=DEVICE)
    assert requests.step([0, 1], logits)[0] == [1, 1]
    requests.add(0, make_row(temperature=0.0, min_tokens=3))
    assert requests.step([0, 1], logits)[0] == [2, 1]


def test_prompt_tokens_do_not_begin_a_bad_word():
    """A word's first tokens count where they were generated, not where they end the prompt."""
    words = ((3, 4), (2, 3, 1))  # the prompt ends with 2, 3
    requests = Requests(5)
    row = {"temperature": 0.0, "bad_words": words, "prompt": (1, 2, 3)}
    requests.add(0, make_row(**row))  # nothing generated
    requests.add(1, make_row(**row, output=(3,)))
    requests.add(2, make_row(**row, output=(2, 3)))
    requests.add(3, make_row(temperature=0.0, bad_words=words, prompt=(1, 2), output=(3,)))
    favours_4 = torch.tensor([[0.0, 1.0, 0.0, 0.0, 5.0]] * 4, device=DEVICE)
    assert requests.step([0, 1, 2, 3], favours_4)[0] == [4, 1, 0, 1]
    requests.add(0, make_row(**row))
    requests.add(1, make_row(**row, output=(3,)))
    requests.add(2, make_row(**row, output=(2, 3)))
    requests.add(3, make_row(temperature=0.0, bad_words=words, prompt=(1, 2), output=(3,)))
    favours_1 = torch.tensor([[0.0, 5.0, 0.0, 0.0, 1.0]] * 4, device=DEVICE)
    assert requests.step([0, 1, 2, 3], favours_1)[0] == [1, 1, 0, 1]


def test_examples_reach_every_stage():
    for stage in STAGES:
        example = stage.example
        asks = NewRequest(
            "0", 0, (1,), 1, 0, (), make_row(**example.params).params, 0,
            example.stop_token_ids, example.bad_words_token_ids,
        )  # fmt: skip
        assert [other for other in STAGES if other.asks(asks)] == [stage]
        ids = {*example.stop_token_ids, *(token for word in example.bad_words_token_ids for token in word)}
        assert all(token < 32 for token in ids)
    together = example_params(grammar=True)
    assert sum(len(stage.example.params) for stage in STAGES) == len(together)  # none names another's
    assert "structured_outputs" not in example_params(grammar=False)


def test_a_request_added_and_replaced_before_the_writes_go_out():
    requests = Requests(40)
    requests.add(0, make_row(bad_words=((3,),), logit_bias={3: 100.0}, frequency_penalty=2.0, output=(3, 3)))
    requests.add(0, make_row(seed=4, output=(5,), presence_penalty=1.0))
    requests.step([0], _logits(np.random.default_rng(2), 1, 40, torch.float32))


def test_lists_that_outgrow_their_tables():
    requests = Requests(2000)
    rng = np.random.default_rng(3)
    for state, count in enumerate((1, 3, 40, 500, 2)):
        words = tuple((int(token),) for token in rng.permutation(2000)[:count])
        bias = {int(token): 3.0 for token in rng.permutation(2000)[:count]}
        requests.add(state, make_row(seed=state, bad_words=words, logit_bias=bias))
        states = list(range(state + 1))
        requests.step(states, _logits(rng, len(states), 2000, torch.float32))


def test_base_stage_alone_equals_sample():
    requests = Requests(100)
    rng = np.random.default_rng(5)
    for state in range(4):
        requests.add(state, make_row(seed=state, temperature=[0.0, 1.0, 0.5, 2.0][state]))
    logits = _logits(rng, 4, 100, torch.float32)
    idx_mapping = torch.tensor([2, 0, 3, 1, -1], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([3, 3, 3, 3, 0], dtype=torch.int32, device=DEVICE)
    tokens, _ = requests.step([2, 0, 3, 1], logits)
    padded = torch.cat([logits, logits[:1]])
    arguments = {"idx_mapping": idx_mapping, "positions": positions}
    assert requests.sampler.base.sample(padded, **arguments)[:4].tolist() == tokens
    ring = torch.full((2, 5), -5, dtype=torch.int32, device=DEVICE)
    computed, turn = (torch.ones(n, dtype=torch.int32, device=DEVICE) for n in (MAX_ROWS, 1))
    requests.history.fill_(0)
    requests.sampler.base.sample_and_append(padded, **arguments, num_computed=computed, ring=ring, turn=turn)
    assert ring.tolist() == [[-5] * 5, [*tokens, -5]]
    assert computed.tolist() == [3, 3, 3, 3, 1, 1, 1, 1]
    assert requests.history[[2, 0, 3, 1], 3].tolist() == tokens
    assert int(requests.history.count_nonzero()) == 4 - tokens.count(0)


def test_unusual_logits_and_parameters():
    inf, nan = math.inf, math.nan
    requests = Requests(5)
    for state, row in enumerate(ENORMOUS_ROWS):
        requests.add(state, row)
    logits = torch.tensor([[0.0, 1.0, -2.0, nan, 5.0]] * 3, device=DEVICE)
    assert requests.step([0, 1, 2], logits)[0] == [4, 1, 1]

    everything = tuple((token,) for token in range(5))
    requests.add(3, make_row(allowed_token_ids=(4, 2), bad_words=everything, top_p=0.5, logprobs=2))
    requests.add(4, make_row(stop=(3, 1), min_tokens=9, allowed_token_ids=(3,), temperature=0.0))
    requests.add(5, make_row(stop=(4,), logprobs=5))
    requests.add(6, make_row(top_k=2, top_p=0.9, min_p=0.1, stop=(2,), logprobs=1))
    rows = [[0.0] * 5, [1.0] * 5, [nan] * 5, [-inf] * 5]
    assert requests.step([3, 4, 5, 6], torch.tensor(rows, device=DEVICE))[0] == [2, 3, -1, -1]


def test_logits_that_say_nothing_give_no_token_whatever_masks_there_are():
    requests = Requests(40)
    requests.add(0, make_row(allowed_token_ids=(38, 36)))
    requests.add(1, make_row(stop=(39,), min_tokens=9, temperature=0.0))
    requests.add(2, make_row(bad_words=((3,),)))
    requests.add(3, make_row(grammar=(35, 38), vocab=40))
    requests.add(4, make_row(grammar=(35, 38), vocab=40))
    logits = torch.full((5, 40), math.nan, device=DEVICE)
    logits[1:3] = -math.inf
    logits[4, 0] = 0.0
    assert requests.step([0, 1, 2, 3, 4], logits)[0] == [-1, -1, -1, -1, 35]


def test_all_else_gives_way_to_a_grammar():
    requests = Requests(40)
    everything = tuple((token,) for token in range(40))
    requests.add(
        0, make_row(grammar=(35, 38, 36), vocab=40, allowed_token_ids=(38, 36, 3), bad_words=everything)
    )
    requests.add(1, make_row(grammar=(38, 35), vocab=40, allowed_token_ids=(3,)))
    requests.add(2, make_row(grammar=(39,), vocab=40, stop=(39,), min_tokens=9, temperature=0.0))
    requests.add(3, make_row(grammar=(31,), vocab=40, logit_bias={31: -100.0}, top_k=1))
    requests.add(4, make_row(grammar=(0, 7), vocab=40, bad_words=everything))
    logits = _logits(np.random.default_rng(8), 5, 40, torch.float32)
    assert requests.step([0, 1, 2, 3, 4], logits)[0] == [36, 35, 39, 31, 0]


def test_a_grammar_that_nobody_asked():
    requests = Requests(40)
    requests.add(2, make_row(grammar=(1,), vocab=40))
    idx_mapping, positions = torch.tensor([2], device=DEVICE), torch.tensor([3], device=DEVICE)
    logits = torch.zeros(1, 40, device=DEVICE)
    requests.sampler.apply_staged_writes()
    for given in (None, GrammarOutput([1], np.zeros((1, 2), dtype=np.int32))):
        with pytest.raises(ValueError, match=r"rows \[2\] have grammars"):
            requests.sampler.sample(logits, SamplingBatch([2], idx_mapping, positions, given))


def test_wrong_shape():
    requests = Requests(100)
    requests.add(0, make_row())
    with pytest.raises(ValueError, match=r"\[1 rows, 100 tokens\]; got shape \(1, 90\)"):
        requests.step([0], torch.zeros(1, 90, device=DEVICE))


def test_host_logprobs_cuts_each_row_to_what_it_asked():
    tensors = LogprobTensors(
        torch.tensor([[5, 1, 2], [6, 3, 4]]), torch.tensor([[-3.0, -1.0, -2.0]] * 2), torch.tensor([3, 9])
    )
    entries = host_logprobs(tensors, [0, 2])
    assert entries[0].token_ids == (5,)
    assert entries[1].token_ids == (6, 3, 4)
    assert entries[1].logprobs == (-3.0, -1.0, -2.0)
    assert [entry.rank for entry in entries] == [3, 9]


@pytest.mark.gpu
def test_base_stage_in_a_cuda_graph():
    """Replayed with other requests and logits in the same tensors, the graph draws what `sample` draws."""
    requests = Requests(151_936)
    rng = np.random.default_rng(6)
    logits = _logits(rng, 4, 151_936, torch.bfloat16)
    idx_mapping = torch.tensor([3, 1, 0, -1], dtype=torch.int32, device=DEVICE)
    positions = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    ring = torch.zeros(5, 4, dtype=torch.int32, device=DEVICE)
    computed, turn = (torch.zeros(n, dtype=torch.int32, device=DEVICE) for n in (MAX_ROWS, 1))
    arguments = {"idx_mapping": idx_mapping, "positions": positions}
    arguments |= {"num_computed": computed, "ring": ring, "turn": turn}
    requests.sampler.base.sample_and_append(logits, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        requests.sampler.base.sample_and_append(logits, **arguments)
    for trial in range(5):
        for state in range(4):
            requests.add(state, make_row(seed=trial * 10 + state, temperature=[0.0, 1.0, 0.5, 2.0][state]))
        logits.copy_(_logits(rng, 4, 151_936, torch.bfloat16))
        positions[:3] = 3
        tokens, _ = requests.step([3, 1, 0], logits[:3])
        turn.fill_(trial)
        graph.replay()
        assert ring[trial, :3].tolist() == tokens


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_vocabulary(dtype):
    """A vocabulary as real models have it, all stages on: V1's tokens but for an odd rounding tie."""
    vocab = 151_936
    rng = np.random.default_rng(7)
    requests = Requests(vocab)
    for state in range(MAX_ROWS):
        requests.add(state, random_row(rng, vocab))
    for _ in range(10):
        requests.step_with_ties(list(range(MAX_ROWS)), _logits(rng, MAX_ROWS, vocab, dtype))
    assert requests.differing <= 1
