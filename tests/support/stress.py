"""Many random requests at once, some of them aborted, against each one's run by itself."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from checkpoints.evaluate import held_out_prompts
from dodona.kernels.sampling import reference as definitions
from dodona.runners.engine.admission import Admission
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.engine.prompts import Prompt
from dodona.runners.llm import LLM
from dodona.runners.outputs import CompletionOutput, RequestOutput
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens, Logits

LOGPROB_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked for."""

    count: int = 200
    longest_prompt: int = 96
    most_tokens: int = 48
    grammars: bool = False
    """Whether some requests have one."""
    few_tokens: bool = False
    """Whether half of the requests have a few tokens only, so that lookup finds drafts."""
    num_blocks: int | None = None
    """KV blocks while all run together; None: as many as the longest request needs."""
    seed: int = 0
    """Of what is random."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One request; `abort_after` is the number of pieces of its stream that are read before it is aborted."""

    prompt: list[int]
    params: SamplingParams
    abort_after: int | None
    close: bool
    """Abort by closing the stream, in place of `LLM.abort`."""


@dataclass(slots=True)
class Progress:
    """What a stream's pieces add up to."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, piece: CompletionOutput) -> None:
        self.token_ids += piece.token_ids
        self.text += piece.text
        self.logprobs += piece.logprobs or []
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


def plans(tokenizer: Any, sizes: Sizes) -> list[Plan]:
    """Random requests: real prompts that share beginnings, cut anywhere, and nonsense; every fifth is
    aborted."""
    rng, longest = random.Random(sizes.seed), sizes.longest_prompt
    forms = held_out_prompts(tokenizer, count=3, recall=False, seed=sizes.seed)
    real = [list(prompt.token_ids) for prompts in forms.values() for prompt in prompts]
    found = []
    for i in range(sizes.count):
        prompt = rng.choice(real)[:longest]
        if rng.random() < 0.5:
            prompt = prompt[: rng.randint(1, len(prompt))]
        if rng.random() < 0.2:
            prompt = [rng.randrange(4, len(tokenizer)) for _ in range(rng.randint(1, longest))]
        elif rng.random() < 0.2:  # KV blocks with the same tokens after another beginning
            prompt = ([*prompt[:8], *real[0][:8] * longest])[: rng.randint(17, longest)]
        # Early enough that most have not ended by themselves.
        pieces = [count for count in (0, 0, 1, 2, 5, 9) if count < sizes.most_tokens / 3]
        abort_after = rng.choice(pieces) if i % 5 == 4 else None
        params = _params(rng, len(tokenizer), sizes)
        if sizes.few_tokens and params.allowed_token_ids:
            prompt = [rng.choice(params.allowed_token_ids) for _ in prompt]
        found.append(Plan(prompt, params, abort_after, close=rng.random() < 0.5))
    return found


def _params(rng: random.Random, vocab: int, sizes: Sizes) -> SamplingParams:
    def maybe(value: Any, otherwise: Any, share: float = 0.25) -> Any:
        return value if rng.random() < share else otherwise

    def ids(count: int) -> list[int]:
        return [rng.randrange(4, vocab) for _ in range(count)]

    temperature = rng.choice([0.0, 0.0, 0.7, 1.0, 1.5])
    max_tokens = rng.randint(1, sizes.most_tokens)
    grammar = maybe({"regex": "([0-9] ?){2,9}"}, None) if sizes.grammars else None
    return SamplingParams(
        n=maybe(2, 1, 0.15) if temperature else 1,
        temperature=temperature,
        top_p=maybe(0.9, 1.0),
        top_k=maybe(rng.randint(1, 20), 0),
        min_p=maybe(0.05, 0.0),
        presence_penalty=maybe(rng.uniform(-1, 1), 0.0),
        frequency_penalty=maybe(rng.uniform(-1, 1), 0.0),
        repetition_penalty=maybe(rng.uniform(0.8, 1.5), 1.0),
        seed=rng.randrange(2**63),
        stop=maybe([rng.choice("0123456789"), "20", "October"], []),
        stop_token_ids=maybe(ids(8), []),
        bad_words=maybe(["1", "May"], [], 0.1),
        ignore_eos=rng.random() < 0.6 and grammar is None,
        max_tokens=max_tokens,
        min_tokens=maybe(rng.randint(0, max_tokens), 0),
        logprobs=maybe(rng.randint(0, 5), None, 0.4),
        prompt_logprobs=maybe(rng.randint(0, 3), None, 0.15),
        logit_bias=maybe(dict.fromkeys(ids(3), 4.0), None, 0.1),
        allowed_token_ids=maybe(ids(5), None, 0.5) if sizes.few_tokens else maybe(ids(40), None, 0.1),
        include_stop_str_in_output=rng.random() < 0.3,
        structured_outputs=grammar,
    )


@contextmanager
def _engine_waits(llm: LLM) -> Iterator[None]:
    """No step inside. Else a fast engine ends requests before the next ones come, and preempts none."""
    go_on = threading.Event()
    llm._client._engine.post(lambda runner, scheduler: go_on.wait())
    try:
        yield
    finally:
        go_on.set()


def run_together(llm: LLM, todo: Sequence[Plan]) -> list[tuple[list[Progress], RequestOutput | None]]:
    """Stream all requests at once; per request, its sequences and its last piece."""
    with _engine_waits(llm):
        streams = [llm.stream({"prompt_token_ids": plan.prompt}, plan.params) for plan in todo]
    results: list[tuple[list[Progress], RequestOutput | None]] = [
        ([Progress() for _ in range(plan.params.n)], None) for plan in todo
    ]

    def read(i: int) -> bool:
        output = next(streams[i], None)
        if output is None:
            return False
        for piece in output.outputs:
            results[i][0][piece.index].add(piece)
        results[i] = (results[i][0], output)
        return True

    for i, plan in enumerate(todo):
        if plan.abort_after is not None:
            for _ in range(plan.abort_after):
                read(i)
            if plan.close:
                streams[i].close()
            else:
                llm.abort(streams[i].request_id)
    for i in range(len(todo)):
        while read(i):
            pass
    return results


ALL = Sizes()


def check_stress(
    make_llm: Callable[..., LLM],
    logits: Logits,
    tokenizer: Any,
    *,
    block_size: int,
    sizes: Sizes = ALL,
    prefix_caching: bool = True,
    make_alone: Callable[..., LLM] | None = None,
) -> DraftStats:
    """`make_llm(**flat)` makes an LLM over one model; `logits` is transformers' answer for the next token.
    make_alone: makes the one of the solo runs; None: the same.

    All requests run together with few KV blocks; then each runs alone, without a prefix cache.
    prefix_caching: whether some must find a cached prefix, or none may. Fewer than 40 requests, or those for
    which a number of blocks is given, need not be preempted or find one.

    Returns the counts of drafts while all ran together.
    """
    todo, count, longest = plans(tokenizer, sizes), sizes.count, sizes.longest_prompt + sizes.most_tokens
    length = {"max_model_len": longest}
    num_blocks = sizes.num_blocks or -(-longest // block_size)
    few = {"block_size": block_size, "num_gpu_blocks_override": num_blocks}
    with make_llm(**length, **few, max_num_seqs=12, max_num_batched_tokens=96) as llm:
        together = run_together(llm, todo)
        stats, scheduler = llm.draft_stats(), llm._client.call(lambda _, scheduler: scheduler)
        assert scheduler.num_unfinished == 0
        assert scheduler.num_free_rows == 12
        assert scheduler.blocks.num_free == num_blocks
        assert not any(scheduler.blocks.num_users(block) for block in range(num_blocks))
        found = any(last is not None and last.num_cached_tokens for _, last in together)
        assert prefix_caching or not found
        if count >= 40 and sizes.num_blocks is None:
            assert scheduler.num_preemptions > 0
            assert found == prefix_caching
    assert sum(s.finish_reason == "abort" for sequences, _ in together for s in sequences) >= count // 20

    alone_flat = {"max_num_seqs": 1, "num_gpu_blocks_override": 20, "enable_prefix_caching": False}
    with (make_alone or make_llm)(**length, **alone_flat) as llm:
        alone = [llm.generate({"prompt_token_ids": p.prompt}, p.params, use_tqdm=False)[0] for p in todo]
        admission = llm._client.admission
    equal = EqualTokens(logits)
    for plan, (sequences, last), reference in zip(todo, together, alone, strict=True):
        assert reference.error is None
        for index, sequence in enumerate(sequences):
            equal.logits = scores_of(logits, plan, admission, index)
            _compare(equal, plan, sequence, reference.outputs[index])
        if plan.params.prompt_logprobs is not None and plan.abort_after is None:
            assert last is not None
            assert last.prompt_logprobs is not None
            assert reference.prompt_logprobs is not None
            assert last.prompt_logprobs[0] is reference.prompt_logprobs[0] is None
            _compare_logprobs(last.prompt_logprobs[1:], reference.prompt_logprobs[1:])
    equal.check()
    return stats


def _compare(equal: EqualTokens, plan: Plan, sequence: Progress, reference: CompletionOutput) -> None:
    expected, actual = list(reference.token_ids), sequence.token_ids
    ended_early = plan.abort_after is not None and sequence.finish_reason in ("abort", None)
    shorter = min(len(expected), len(actual))
    if ended_early or expected[:shorter] != actual[:shorter]:  # after a tie, lengths may differ
        assert len(actual) <= len(expected) or not ended_early
        expected, actual = expected[:shorter], actual[:shorter]
    equal.compare(plan.prompt, expected, actual)
    if expected != actual:
        return
    if plan.params.logprobs is not None:
        assert reference.logprobs is not None
        _compare_logprobs(sequence.logprobs, reference.logprobs[: len(actual)])
    if not ended_early:
        assert sequence.finish_reason == reference.finish_reason
        assert sequence.stop_reason == reference.stop_reason
        assert sequence.text == reference.text


def _compare_logprobs(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        # The token itself comes first; of the others, near ties may change places.
        assert next(iter(mine)) == next(iter(theirs))
        values, others = ([entry.logprob for entry in position.values()] for position in (mine, theirs))
        assert sorted(values) == pytest.approx(sorted(others), abs=LOGPROB_TOLERANCE)


def scores_of(logits: Logits, plan: Plan, admission: Admission, index: int) -> Logits:
    """What a sequence's next token is the argmax of, from transformers' logits: the reference for ties."""
    request = admission.admit(Prompt(token_ids=plan.prompt), plan.params)[index]

    def scores(token_ids: Sequence[int]) -> torch.Tensor:
        row = sampling.SamplingRow(
            params=plan.params,
            prompt_token_ids=plan.prompt,
            output_token_ids=token_ids[len(plan.prompt) :],
            seed=request.seed,
            stop_token_ids=sorted(request.stop_token_ids),
            bad_words_token_ids=request.bad_words_token_ids,
        )
        found = definitions.sanitize(logits(token_ids)[None])
        sampling.process_row(found[0], row)
        if plan.params.greedy:
            return found[0]
        found *= sampling.inverse_temperature(plan.params.temperature)
        params = plan.params
        cut = definitions.thresholds(
            found,
            torch.tensor([sampling.log_min_p(params.min_p)]),
            torch.tensor([params.top_k]),
            torch.tensor([params.top_p]),
        )
        found[found < cut[:, None]] = -torch.inf
        noise = definitions.gumbel_noise(
            torch.tensor([row.seed]), torch.tensor([row.position]), found.shape[1]
        )
        return (found + noise)[0]

    return scores
