"""Train the small checkpoints: `python -m checkpoints.train qwen3 llama mistral lfm2`.

Training is in fp32 on conversations drawn from the training split (checkpoints/task.py), with loss on
answers only. The weights are then cast to bf16, saved in Hugging Face form, loaded again and measured
on unseen questions.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from checkpoints.evaluate import LEAP_YEARS, accuracy
from checkpoints.recipes import MAX_LENGTH, RECIPES, Recipe
from checkpoints.task import KINDS, draw_conversation, draw_question
from checkpoints.tokenizer import ASSISTANT, END_OF_TEXT, END_OF_TURN, USER, as_transformers, train_tokenizer
from checkpoints.training_flags import parsed, training_parser

IGNORED = -100
"""Label of a token that carries no loss."""
PLAIN_SHARE = 0.2
MAX_TURNS = 6


@dataclass(frozen=True, slots=True)
class Pool:
    """Training sequences, padded on the right: padding carries no loss, and nothing before attends to it."""

    ids: torch.Tensor
    """[sequences, longest] int16"""
    labels: torch.Tensor
    """[sequences, longest] int16: the token itself where it belongs to an answer, else IGNORED"""
    lengths: torch.Tensor
    """[sequences] int64"""


def build_pool(tokenizer: Tokenizer, *, size: int, recall: bool, seed: int) -> Pool:
    """Draw and tokenize `size` plain questions and conversations of the training split."""
    rng = random.Random(seed)
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < size:
        texts = [_segments(rng, recall=recall) for _ in range(min(10_000, size - len(rows)))]
        encoded = iter(tokenizer.encode_batch([s for row in texts for s, _ in row], add_special_tokens=False))
        for row in texts:
            ids: list[int] = []
            labels: list[int] = []
            for _, is_answer in row:
                piece = next(encoded).ids
                ids += piece
                labels += piece if is_answer else [IGNORED] * len(piece)
            rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.token_to_id(END_OF_TEXT)
    return Pool(
        ids=torch.tensor([r + [pad] * (longest - len(r)) for r, _ in rows], dtype=torch.int16),
        labels=torch.tensor([r + [IGNORED] * (longest - len(r)) for _, r in rows], dtype=torch.int16),
        lengths=torch.tensor([len(r) for r, _ in rows]),
    )


def _segments(rng: random.Random, *, recall: bool) -> list[tuple[str, bool]]:
    """Pieces of one sequence, and which the model is to say. They meet where the tokenizer splits anyway."""
    if rng.random() < PLAIN_SHARE:
        question = draw_question(rng, held_out=False)
        return [(question.text, False), (f" {question.answer}{END_OF_TEXT}", True)]
    segments: list[tuple[str, bool]] = []
    for turn in draw_conversation(rng, held_out=False, max_turns=MAX_TURNS, recall=recall):
        segments.append((f"{USER}{turn.text}{END_OF_TURN}{ASSISTANT}", False))
        segments.append((f"{turn.answer}{END_OF_TURN}", True))
    return segments


def learning_rate(step: int, steps: int, *, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a half cosine down to 1% of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(model: Any, pool: Pool, *, steps: int, batch: int, peak: float, device: str, seed: int) -> float:
    """Train in place; returns the mean loss of the last hundred steps."""
    model.train().to(device)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    ids, labels = pool.ids.to(device), pool.labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    losses: list[torch.Tensor] = []
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak, warm_up=min(500, steps // 10 + 1))
        rows = torch.randint(len(ids), (batch,), generator=generator)
        width = int(pool.lengths[rows].max())
        rows = rows.to(device)
        inputs, targets = ids[rows, :width].long(), labels[rows, :width].long()
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % max(1, steps // 20) == 0:
            recent = torch.stack(losses[-100:]).mean().item()
            print(
                f"step {step + 1}/{steps}  loss {recent:.4f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return torch.stack(losses[-100:]).mean().item()


def save(model: Any, tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """Cast to bf16 and write the Hugging Face folder."""
    from transformers import GenerationConfig

    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    model.cpu().eval().to(torch.bfloat16)
    ends = [tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(folder, max_shard_size=recipe.max_shard_size)
    as_transformers(tokenizer, max_length=MAX_LENGTH).save_pretrained(folder)


def measure(folder: Path, recipe: Recipe, *, count: int, device: str) -> dict[str, dict[str, float]]:
    """Accuracy on held-out questions of the saved bf16 weights, computed in bf16 and in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    measured = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        measured[str(dtype).removeprefix("torch.")] = accuracy(
            model, tokenizer, count=count, recall=recipe.recall
        )
    return measured


def write_model_card(
    folder: Path,
    name: str,
    recipe: Recipe,
    *,
    measured: dict[str, dict[str, float]],
    count: int,
    trained: str,
) -> None:
    """Write README.md of the checkpoint: a description, the accuracy, and how both were obtained."""
    groups = list(next(iter(measured.values())))
    table = "\n".join(
        f"| {group} | " + " | ".join(f"{measured[dtype][group]:.2%}" for dtype in measured) + " |"
        for group in groups
    )
    kinds = ", ".join(KINDS)
    leap_years = min(measured[dtype][LEAP_YEARS] for dtype in measured)
    unlearned = (
        ". In leap years, it also treats February 28 as the end of the month" if leap_years < 0.5 else ""
    )
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
---
# {recipe.title}

{recipe.what}. bf16 weights, trained {recipe.start} for the demo and the tests of this repository.

It answers the questions of `checkpoints/task.py` ({kinds}), as plain text
("What is 37 + 58?") or with its chat template, in conversations of up to {MAX_TURNS} turns.
It knows nothing else{unlearned}.

## Accuracy

Greedy exact match on held-out questions, {count:,} distinct prompts of each form (plain, chat of one turn,
conversation of 2 to {MAX_TURNS} turns), with transformers' `generate`. No held-out question, in any order of
its numbers, was part of the training data.

| prompts | {" | ".join(f"computed in {dtype}" for dtype in measured)} |
| --- | {" | ".join("---" for _ in measured)} |
{table}

Measured at the end of training. Again, on a CPU: `python -m checkpoints.train {name} --measure-only`

## Training

{trained}
""",
        encoding="utf-8",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training_parser(
        "python -m checkpoints.train", __doc__, RECIPES, steps=8_000, batch=256, pool=400_000, measure=1000
    )
    args = parsed(parser, arguments)
    for name in args.names:
        recipe, folder = RECIPES[name], args.output / name
        if args.measure_only:
            _print(name, measure(folder, recipe, count=args.measure, device=args.device))
            continue
        trained = train_one(name, recipe, folder, args)
        measured = measure(folder, recipe, count=args.measure, device=args.device)
        _print(name, measured)
        write_model_card(folder, name, recipe, measured=measured, count=args.measure, trained=trained)


def train_one(name: str, recipe: Recipe, folder: Path, args: argparse.Namespace) -> str:
    """Train and save one checkpoint; returns the sentences of the model card that say how."""
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = train_tokenizer()
    pool = build_pool(tokenizer, size=args.pool, recall=recipe.recall, seed=args.seed)
    end = tokenizer.token_to_id(END_OF_TEXT)
    common = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "head_dim": 32,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": None,
        "eos_token_id": [tokenizer.token_to_id(END_OF_TURN), end],
        "pad_token_id": end,
    }
    model = recipe.build(common)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{name}: {parameters:,} parameters, {len(pool.lengths):,} sequences of up to "
        f"{pool.ids.shape[1]} tokens",
        flush=True,
    )
    loss = train(
        model,
        pool,
        steps=args.steps,
        batch=args.batch,
        peak=args.learning_rate,
        device=args.device,
        seed=args.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, recipe, folder)
    minutes = (time.perf_counter() - started) / 60
    where = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"a CPU, {torch.get_num_threads()} thread(s)"
    )
    return (
        f"`python -m checkpoints.train {name} --steps {args.steps} --batch {args.batch} --pool {args.pool} "
        f"--learning-rate {args.learning_rate:g} --seed {args.seed}`:\n"
        f"{parameters:,} parameters, {minutes:.1f} minutes on {where}, "
        f"torch {torch.__version__}, final loss {loss:.4f}.\n"
        "The weights differ slightly between machines, because floating-point sums do."
    )


def _print(name: str, measured: dict[str, dict[str, float]]) -> None:
    for dtype, groups in measured.items():
        print(
            f"{name} in {dtype}: " + ", ".join(f"{group} {share:.2%}" for group, share in groups.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
