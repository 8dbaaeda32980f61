"""`make demo`: select a runner for a real model, show the reasons, build the runner, generate, and check; at
last, one answer with drafts.

The model is checkpoints/qwen3. The questions are not part of its training data. Exits with status 1 if an
answer is wrong.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from checkpoints.task import KINDS, Question, chat_messages, draw_conversation, draw_question
from dodona.oracle.explain.table import make_console, verdict_table
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams

MODEL = os.path.relpath(Path(__file__).resolve().parents[1] / "checkpoints" / "qwen3")
SEED = 2026


def main() -> int:
    """Returns the exit status."""
    console = make_console()
    started = time.perf_counter()

    console.rule("The verdict")
    verdict = select_runner(MODEL)
    console.print(verdict_table(verdict))
    if verdict.runner == "v1":
        gpu = select_runner(MODEL, environment=Environment(has_triton=True, platform="cuda"))
        console.print(f"With an NVIDIA GPU: {gpu.explain().splitlines()[0]}")

    console.print()
    console.rule(f"The answers of runner {verdict.runner}")
    conversations = unseen_conversations()
    with LLM.from_verdict(verdict) as llm:
        ready = time.perf_counter()
        outputs = llm.chat(
            [chat_messages(turns) for turns in conversations],
            SamplingParams(temperature=0.0, max_tokens=16),
            use_tqdm=False,
        )
    done = time.perf_counter()

    answers = [output.outputs[0].text for output in outputs]
    table, right = answer_table(conversations, answers)
    console.print(table)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    console.print(
        f"{right} of {len(answers)} right. Ready after {ready - started:.1f} s; "
        f"{tokens} tokens for {len(answers)} prompts, batched, in {done - ready:.2f} s."
    )

    console.print()
    console.rule("An answer with drafts")
    show_drafts(console)
    return 0 if right == len(answers) else 1


def unseen_conversations() -> list[tuple[Question, ...]]:
    """One question of each kind, and two longer conversations; none is part of the training data."""
    rng = random.Random(SEED)
    single = [(draw_question(rng, held_out=True, kind=kind),) for kind in KINDS]
    longer: list[tuple[Question, ...]] = []
    while len(longer) < 2:
        turns = draw_conversation(rng, held_out=True, max_turns=5, recall=True)
        if len(turns) > 2 and (turns[-1].kind == "recall") == (not longer):
            longer.append(turns)
    return [*single, *longer]


def show_drafts(console: Console) -> None:
    """Print the steps of one answer, each with the number of drafts that it kept."""
    rng = random.Random(SEED)
    question = draw_question(rng, held_out=True, kind="next-day")
    speculative = {"method": "eagle3", "model": f"{MODEL}-eagle3", "num_speculative_tokens": 4}
    with LLM(MODEL, speculative_config=speculative) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=16)
        steps = [output.outputs[0] for output in llm.stream(question.text, params)]
        stats = llm.draft_stats()
    table = Table()
    for header in ("Step", "Text", "Tokens", "Accepted drafts"):
        table.add_column(header)
    accepted = 0
    for number, step in enumerate(steps, 1):
        table.add_row(
            str(number), step.text, str(len(step.token_ids)), str(step.num_accepted_tokens - accepted)
        )
        accepted = step.num_accepted_tokens
    console.print(question.text)
    console.print(table)
    console.print(
        f"Drafts by {speculative['method']}: {stats.num_accepted_tokens} of {stats.num_draft_tokens} "
        f"accepted, {stats.mean_acceptance_length:.2f} tokens per step."
    )


def answer_table(conversations: list[tuple[Question, ...]], answers: list[str]) -> tuple[Table, int]:
    """A table of the answers and the right answers, and the number of right answers."""
    table = Table(show_lines=True)
    for header in ("Question", "Answer", "Right answer", ""):
        table.add_column(header, vertical="bottom")
    right = 0
    for turns, answer in zip(conversations, answers, strict=True):
        question = turns[-1]
        is_right = answer.strip() == question.answer
        right += is_right
        before = [f"[dim]{turn.text} {turn.answer}[/dim]" for turn in turns[:-1]]
        table.add_row(
            "\n".join([*before, question.text]),
            answer.strip(),
            question.answer,
            "[green]✓[/green]" if is_right else "[red]✗[/red]",
        )
    return table, right


if __name__ == "__main__":
    sys.exit(main())
