"""Stories of the simulation: what happens to an engine, and when, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dodona.runners.lora.adapter import Adapter
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams
from tests.support.counting_grammar import CountingGrammar

VOCAB = 31
END = 0
MAX_MODEL_LEN = 24

SITES = ("step", "read", "allocate", "mask", "transfer", "sink", "call")
"""Where a fault may strike: a forward pass starts, a result is read, a block is allocated, grammars are asked
what they allow, the connector starts a step's loads, a sink takes news, a function runs between two steps."""
FATAL_SITES = SITES[:5]
"""Where it ends the engine."""


@dataclass(frozen=True)
class HostMemory:
    """A KV connector's memory, and how its copies behave."""

    num_slots: int
    """Blocks that it holds."""
    most_steps: int
    """Steps that a copy takes at most."""
    fault_rate: float
    """How often a load loses a block."""
    seed: int


@dataclass(frozen=True)
class Sizes:
    """The engine's configuration."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    max_steps_in_flight: int
    num_speculative_tokens: int
    host_memory: HostMemory | None = None
    lost_every: int = 0
    """After one in so many contexts the model's logits are no numbers; 0: they always are."""
    max_loras: int = 1
    drafts_on_device: bool = False
    """Whether it is the device that drafts, and always as many."""


@dataclass(frozen=True)
class Sleep:
    """The engine sleeps, and wakes up."""

    turn: int
    wake_turn: int
    level: int
    """After 2 the weights are read again."""


@dataclass(frozen=True)
class Arrival:
    """A request, and when it comes and goes: counted in turns of the engine."""

    turn: int
    prompt: tuple[int, ...]
    max_tokens: int | None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    streaming: bool = False
    abort_turn: int | None = None
    has_grammar: bool = False
    grammar_breaks_at: int | None = None
    """How many tokens its grammar takes before it fails; None for all."""
    adapter_number: int | None = None

    @property
    def params(self) -> SamplingParams:
        """Its sampling parameters."""
        grammar = StructuredOutputsParams(regex="stands for it") if self.has_grammar else None
        return SamplingParams(
            temperature=0.0 if self.seed is None else 1.0, seed=self.seed, n=self.n,
            structured_outputs=grammar, max_tokens=self.max_tokens, stop_token_ids=self.stop_token_ids,
            min_tokens=self.min_tokens, ignore_eos=self.ignore_eos, logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )  # fmt: skip

    @property
    def adapter(self) -> Adapter | None:
        """Its adapter."""
        number = self.adapter_number
        return None if number is None else Adapter(f"a{number}", number, "", bytes([number]) * 8, {})

    def grammar(self) -> CountingGrammar | None:
        """Its grammar, at the beginning."""
        return CountingGrammar(VOCAB, END, self.grammar_breaks_at) if self.has_grammar else None


@dataclass(frozen=True)
class Story:
    """Everything that happens."""

    sizes: Sizes
    arrivals: tuple[Arrival, ...]
    weight_changes: tuple[int, ...] = ()
    """Turns at which weights change, after the requests that came before are finished."""
    fault: tuple[str, int] | None = None
    """A site, and which of its passes fails, from 0."""
    sleeps: tuple[Sleep, ...] = ()

    def test(self) -> str:
        """The text of a test that runs it."""
        return f"def test_this_story():\n    run({self!r})\n"


def story_of(seed: int, *, faults: bool = True) -> Story:
    """The story of a seed."""
    rng = random.Random(seed)
    block_size = rng.randint(1, 4)
    least = -(-MAX_MODEL_LEN // block_size)
    chunked = rng.random() < 0.7
    host_memory = _host_memory(rng) if rng.random() < 0.3 else None
    sizes = Sizes(
        num_blocks=least + rng.choice((0, 0, rng.randint(0, 3), rng.randint(0, least))),
        block_size=block_size,
        max_num_seqs=rng.randint(1, 4),
        max_num_batched_tokens=rng.randint(1, 12) if chunked else MAX_MODEL_LEN + rng.randint(0, 8),
        enable_chunked_prefill=chunked,
        # What the cache has is not loaded.
        enable_prefix_caching=rng.random() < (0.7 if host_memory is None else 0.3),
        max_steps_in_flight=rng.choice((1, 1, 2)),
        num_speculative_tokens=rng.choice((0, 0, 2, rng.randint(1, 5))),
        host_memory=host_memory,
        lost_every=rng.choice((0, 0, 0, 0, rng.randint(4, 40))),
        max_loras=rng.randint(1, 2),
        drafts_on_device=random.Random(-1 - seed).random() < 0.5,  # apart: stories keep their seeds
    )
    bases = [tuple(rng.randrange(1, VOCAB) for _ in range(12)) for _ in range(2)]
    arrivals = tuple(_arrival(rng, bases) for _ in range(rng.randint(1, 5)))
    changes = tuple(rng.randint(0, 16) for _ in range(rng.choice((0, 0, 0, 1, 2))))
    fault = None
    if faults and rng.random() < 0.3:
        site = rng.choice(SITES)
        fault = (site, rng.randint(0, 1 if site == "call" else 12))
    sleeps: tuple[Sleep, ...] = ()
    if rng.random() < 0.15:
        turn = rng.randint(0, 14)
        sleeps = (Sleep(turn, turn + rng.randint(0, 6), rng.choice((1, 1, 2))),)
    return Story(sizes, arrivals, changes, fault, sleeps)


def _host_memory(rng: random.Random) -> HostMemory:
    return HostMemory(
        num_slots=rng.choice((rng.randint(1, 4), 40)),
        most_steps=rng.randint(0, 4),
        fault_rate=rng.choice((0.0, 0.5)),
        seed=rng.randrange(100),
    )


def _arrival(rng: random.Random, bases: list[tuple[int, ...]]) -> Arrival:
    prompt = rng.choice(bases)[: rng.randint(1, 12)]
    if rng.random() < 0.4:
        prompt = (*prompt[:-1], rng.randrange(1, VOCAB))
    seed = rng.randrange(100) if rng.random() < 0.4 else None
    turn = rng.choice((0, 0, rng.randint(0, 14)))
    max_tokens = rng.choice((None, 1, rng.randint(1, 8), rng.randint(1, 8)))
    has_grammar = rng.random() < 0.2
    return Arrival(
        turn=turn,
        prompt=prompt,
        max_tokens=max_tokens,
        stop_token_ids=tuple({rng.randrange(VOCAB) for _ in range(rng.choice((0, 0, 2)))}),
        min_tokens=rng.randint(0, max_tokens or 6) if rng.random() < 0.3 else 0,
        ignore_eos=rng.random() < 0.3 and not has_grammar,
        seed=seed,
        n=1 if seed is None else rng.choice((1, 1, 2)),
        logprobs=rng.choice((None, None, 1)),
        prompt_logprobs=rng.choice((None, None, None, 1)),
        streaming=rng.random() < 0.4,
        abort_turn=turn + rng.randint(0, 10) if rng.random() < 0.25 else None,
        has_grammar=has_grammar,
        grammar_breaks_at=rng.randint(0, 5) if has_grammar and rng.random() < 0.2 else None,
        adapter_number=rng.choice((None, None, None, None, 1, 2, 3)),
    )
