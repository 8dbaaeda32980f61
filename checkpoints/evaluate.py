"""Exact-match accuracy of a checkpoint on held-out questions, by transformers' own greedy `generate`."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from checkpoints.task import KINDS, chat_messages, draw_conversation, draw_question, leap_questions

MAX_NEW_TOKENS = 16
"""More than the longest answer ("September 30, 2024" and its end: 10 tokens)."""
LEAP_YEARS = "February 28 of leap years (25, of which 3 held out)"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as token ids, and the answer that is right."""

    kind: str
    text: str
    token_ids: tuple[int, ...]
    answer: str


def held_out_prompts(tokenizer: Any, *, count: int, recall: bool, seed: int) -> dict[str, list[Prompt]]:
    """`count` distinct unseen prompts of each form: "plain", "chat" (one turn), "conversation" (2 to 6)."""
    rng = random.Random(seed)
    kinds = tuple(KINDS)

    def plain() -> Iterator[Prompt]:
        while True:
            for kind in kinds:
                q = draw_question(rng, held_out=True, kind=kind)
                yield Prompt(kind, q.text, tuple(tokenizer(q.text)["input_ids"]), q.answer)

    def chat(first_turns: int, max_turns: int) -> Iterator[Prompt]:
        while True:
            turns = draw_conversation(rng, held_out=True, max_turns=max_turns, recall=recall)
            if len(turns) < first_turns:
                continue
            text = tokenizer.apply_chat_template(
                chat_messages(turns), tokenize=False, add_generation_prompt=True
            )
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            yield Prompt(turns[-1].kind, text, ids, turns[-1].answer)

    forms = {"plain": plain(), "chat": chat(1, 1), "conversation": chat(2, 6)}
    return {form: _distinct(prompts, count) for form, prompts in forms.items()}


def _distinct(prompts: Iterator[Prompt], count: int) -> list[Prompt]:
    found: dict[tuple[int, ...], Prompt] = {}
    while len(found) < count:
        prompt = next(prompts)
        found.setdefault(prompt.token_ids, prompt)
    return list(found.values())


@torch.inference_mode()
def generate_answers(model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, batch: int = 512) -> list[str]:
    """Greedy answers in the order of `prompts`. Only prompts of one length share a batch: none is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt.token_ids)].append(index)
    answers = [""] * len(prompts)
    for length, indices in by_length.items():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            ids = torch.tensor([prompts[i].token_ids for i in part], device=model.device)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            for i, row in zip(part, out[:, length:].tolist(), strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return answers


def accuracy(model: Any, tokenizer: Any, *, count: int, recall: bool, seed: int = 1) -> dict[str, float]:
    """Share of right answers by form, and by kind over all forms; `count` prompts of each form."""
    right: Mapping[str, list[bool]] = defaultdict(list)
    for form, prompts in held_out_prompts(tokenizer, count=count, recall=recall, seed=seed).items():
        for prompt, answer in zip(prompts, generate_answers(model, tokenizer, prompts), strict=True):
            for group in ("all", form, prompt.kind):
                right[group].append(answer == prompt.answer)
    order = ["all", "plain", "chat", "conversation", *KINDS, "recall"]
    shares = {group: sum(right[group]) / len(right[group]) for group in order if right[group]}
    return {**shares, LEAP_YEARS: _leap_accuracy(model, tokenizer)}


def _leap_accuracy(model: Any, tokenizer: Any) -> float:
    """Random dates hardly ever hit the one rule of the calendar that is rare, so it is measured by itself."""
    prompts = [
        Prompt(q.kind, q.text, tuple(tokenizer(q.text)["input_ids"]), q.answer) for q in leap_questions()
    ]
    answers = generate_answers(model, tokenizer, prompts)
    return sum(a == p.answer for a, p in zip(answers, prompts, strict=True)) / len(prompts)
