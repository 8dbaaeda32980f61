"""Train the draft heads of checkpoints/qwen3: `python -m checkpoints.train_heads eagle3 peagle`.

The target answers questions of the training split greedily, and goes on after its answers. A head learns the
target's distribution at each depth, along what the target said: EAGLE3 from its own output at the depth
before ("training-time test", arXiv:2503.01840), P-EAGLE from a mask at every depth after the first. The heads
are cast to bf16, saved, and measured by the engine on unseen questions.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.evaluate import held_out_prompts
from checkpoints.heads import (
    DRAFT_VOCAB_SIZE,
    NUM_SPECULATIVE_TOKENS,
    RECIPES,
    TARGET,
    HeadRecipe,
    head_configuration,
    save_head,
)
from checkpoints.task import chat_messages, draw_conversation, draw_question
from checkpoints.train import MAX_TURNS, learning_rate
from checkpoints.training_flags import HERE, parsed, training_parser
from dodona.oracle.models.head_config import read_head_config
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.drafting.head import DraftHead
from dodona.runners.v1.drafting.hidden_states import HiddenStates

NEW_TOKENS = 14
"""Tokens of the target after each prompt: its longest answer, and drafts after it."""
PLAIN_SHARE = 0.5
"""Questions without a conversation around them: they cost a tenth, and teach the same."""


def training_prompts(tokenizer: Any, *, size: int, seed: int) -> list[list[int]]:
    """Plain questions and conversations of the training split, as token ids."""
    rng = random.Random(seed)
    found = []
    for _ in range(size):
        if rng.random() < PLAIN_SHARE:
            text = draw_question(rng, held_out=False).text
        else:
            turns = draw_conversation(rng, held_out=False, max_turns=MAX_TURNS, recall=True)
            text = tokenizer.apply_chat_template(
                chat_messages(turns), tokenize=False, add_generation_prompt=True
            )
        found.append(text)
    return [list(ids) for ids in tokenizer(found, add_special_tokens=False)["input_ids"]]


@torch.inference_mode()
def continuations(model: Any, prompts: Sequence[Sequence[int]], *, batch: int = 1024) -> Pool:
    """Each prompt with `NEW_TOKENS` greedy tokens of the model, which does not stop."""
    by_length: dict[int, list[Sequence[int]]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt)].append(prompt)
    rows: list[Tensor] = []
    starts: list[int] = []
    for length, same in sorted(by_length.items()):
        for begin in range(0, len(same), batch):
            ids = torch.tensor(same[begin : begin + batch], device=model.device)
            rows += list(_continued(model, ids).cpu())
            starts += [length] * len(ids)
    return Pool(rows, starts)


def _continued(model: Any, ids: Tensor) -> Tensor:
    """[B, L + NEW_TOKENS]: the argmax at each place. `generate` would mask the end of an answer to go on."""
    cache, inputs = None, ids
    for _ in range(NEW_TOKENS):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache, inputs = output.past_key_values, output.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, inputs], dim=1)
    return ids


class Pool:
    """Sequences of prompt and continuation, shortest first; `starts` are the prompts' lengths."""

    def __init__(self, rows: list[Tensor], starts: list[int]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows])
        self.starts = torch.tensor(starts)
        self.ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def counts(self, vocab_size: int) -> Tensor:
        """[vocab]: how often each token occurs in continuations."""
        places = torch.arange(self.ids.shape[1])
        inside = (places >= self.starts[:, None]) & (places < self.lengths[:, None])
        return torch.bincount(self.ids[inside], minlength=vocab_size)


class DepthAttention:
    """Attention of a head at one depth after the other, over whole sequences.

    Depth 0 is causal. The entry of depth d at place t sees the entries of depth 0 up to t, and those of
    depths 1 to d at t itself: what a drafting head sees. Depths after the first have entries at the places of
    `window` [B, W] alone.
    """

    def __init__(self, scaling: float, window: Tensor) -> None:
        self.scaling = scaling
        self.window = window
        self.keys: dict[int, list[Tensor]] = defaultdict(list)
        self.values: dict[int, list[Tensor]] = defaultdict(list)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        keys, values = self.keys[layer], self.values[layer]
        keys.append(key)
        values.append(value)
        scores = query @ keys[0].transpose(-1, -2) * self.scaling
        length = keys[0].shape[2]
        places = torch.arange(length, device=query.device)
        if len(keys) == 1:
            later = (places > places[:, None])[None]
        else:
            later = places > self.window[..., None]
        scores = scores.masked_fill(later[:, None], float("-inf"))
        own = [(query * k).sum(-1, keepdim=True) * self.scaling for k in keys[1:]]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1)
        out = weights[..., :length] @ values[0]
        for i, v in enumerate(values[1:]):
            out = out + weights[..., length + i : length + i + 1] * v
        return out.transpose(1, 2)


def depth_losses(
    head: DraftHead, ids: Tensor, starts: Tensor, lengths: Tensor, hidden: Tensor, logits: Tensor
) -> list[Tensor]:
    """Cross-entropy with the target's distribution at each depth.

    ids [B, L]; starts, lengths [B]; hidden [B, L, n * size] and logits [B, L, vocab] of the target.
    """
    count = ids.shape[1] - 1
    places = torch.arange(count, device=ids.device)
    # the places from which a token of the continuation is drafted
    window = starts[:, None] - 1 + torch.arange(NEW_TOKENS, device=ids.device)
    attend = DepthAttention(head.scaling, window)
    mask = head.features(head.mask_hidden) if head.head.is_parallel else None
    output = _at(
        head(ids[:, 1:], head.features(hidden[:, :count]), places[None].expand(len(ids), -1), attend), window
    )
    losses = []
    for depth in range(NUM_SPECULATIVE_TOKENS):
        if depth:
            if mask is not None:
                tokens = torch.full_like(window, head.head.mask_token_id or 0)
                features = mask.expand(*window.shape, -1)
            else:
                tokens = ids.gather(1, (window + 1 + depth).clamp(max=count))
                features = head.next_features(output)
            output = head(tokens, features, window + depth, attend)
        wanted = _at(logits, (window + 1 + depth).clamp(max=count))[..., head.targets].float().softmax(-1)
        found = head.draft_logits(output).float().log_softmax(-1)
        due = window + 2 + depth < lengths[:, None]
        losses.append(-(wanted * found).sum(-1)[due].mean())
    return losses


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values [B, L, n], places [B, W] -> [B, W, n]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def train_head(
    head: DraftHead, target: Any, pool: Pool, *, steps: int, batch: int, peak: float, device: str, seed: int
) -> list[float]:
    """Train in place; returns the losses by depth, means of the last steps."""
    head.train().to(device)
    hidden_states = HiddenStates(target, head.head.layer_ids)
    optimizer = torch.optim.AdamW(head.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    recent: list[Tensor] = []
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak, warm_up=min(200, steps // 10 + 1))
        # sequences of about one length: nothing is computed for padding
        first = int(torch.randint(max(1, len(pool.ids) - batch + 1), (1,), generator=generator))
        rows = torch.arange(first, min(first + batch, len(pool.ids)))
        width = int(pool.lengths[rows].max())
        ids = pool.ids[rows, :width].to(device)
        starts, lengths = pool.starts[rows].to(device), pool.lengths[rows].to(device)
        with torch.no_grad():
            logits = target(input_ids=ids, use_cache=False).logits
            hidden = hidden_states.batched()
        losses = torch.stack(depth_losses(head, ids, starts, lengths, hidden, logits))
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], losses.detach()]
        if (step + 1) % max(1, steps // 10) == 0:
            shown = ", ".join(f"{value:.3f}" for value in torch.stack(recent).mean(0).tolist())
            elapsed = time.perf_counter() - started
            print(f"step {step + 1}/{steps}  losses by depth {shown}  {elapsed:.0f} s", flush=True)
    found: list[float] = torch.stack(recent).mean(0).tolist()
    return found


def measure(
    folder: Path, target: Path, *, parallel: bool, count: int, device: str
) -> dict[str, tuple[Any, float]]:
    """Greedy answers to `count` held-out prompts of each form, by the engine. By form: `DraftStats`, and the
    tokens of answers that a step with drafts gave."""
    from dodona.runners.llm import LLM
    from dodona.runners.sampling.params import SamplingParams

    speculative = {
        "method": "eagle3",
        "model": str(folder),
        "num_speculative_tokens": NUM_SPECULATIVE_TOKENS,
        "parallel_drafting": parallel,
    }
    params = SamplingParams(temperature=0.0, max_tokens=32)
    found: dict[str, tuple[Any, float]] = {}
    for form in ("plain", "chat", "conversation"):
        with LLM(str(target), device=device, speculative_config=speculative) as llm:
            prompts = held_out_prompts(llm.get_tokenizer(), count=count, recall=True, seed=1)[form]
            outputs = llm.generate(
                [{"prompt_token_ids": list(p.token_ids)} for p in prompts], params, use_tqdm=False
            )
            stats = llm.draft_stats()
            delivered = sum(len(output.outputs[0].token_ids) - 1 for output in outputs)
            found[form] = stats, delivered / stats.num_drafts
    return found


def write_card(
    folder: Path, recipe: HeadRecipe, form: str, found: dict[str, tuple[Any, float]], trained: str
) -> None:
    """README.md of a head."""
    depths = " | ".join(f"draft {depth + 1}" for depth in range(NUM_SPECULATIVE_TOKENS))
    rows = "\n".join(
        f"| {name} | {stats.mean_acceptance_length:.2f} | {delivered:.2f} | "
        + " | ".join(f"{count / stats.num_drafts:.1%}" for count in stats.num_accepted_tokens_per_pos)
        + " |"
        for name, (stats, delivered) in found.items()
    )
    layout = "SafeAILab/EAGLE" if form == "safeailab" else "vllm-project/speculators"
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
base_model: {TARGET}
---
# {recipe.title[0].upper()}{recipe.title[1:]} for checkpoints/{TARGET}

In the format of {layout}, bf16. It drafts for the questions of `checkpoints/task.py` and knows nothing else.

## Acceptance

Greedy answers to held-out prompts, {NUM_SPECULATIVE_TOKENS} drafts a step. The accepted length counts the
accepted drafts and the token that the model adds; drafts after the end of an answer are compared with what
the model would say next. Answers are short: a step that ends one gives fewer tokens than it accepted.

| prompts | accepted length | tokens of answers per step | {depths} |
| --- | --- | --- | {" | ".join("---" for _ in range(NUM_SPECULATIVE_TOKENS))} |
{rows}

## Training

{trained}
""",
        encoding="utf-8",
    )


def train_one(name: str, recipe: HeadRecipe, target: Any, pool: Pool, args: argparse.Namespace) -> str:
    """Train one head and save it in its formats; returns the card's sentences on training."""
    started = time.perf_counter()
    counts = pool.counts(target.config.vocab_size)
    targets = counts.argsort(descending=True, stable=True)[:DRAFT_VOCAB_SIZE].sort().values
    mask_token_id = _unused_token(pool, target.config.vocab_size)
    forms = recipe.folders
    with tempfile.TemporaryDirectory() as scratch:
        any_form = next(iter(forms.values()))
        configuration = head_configuration(recipe, target.config, form=any_form, mask_token_id=mask_token_id)
        save_head(Path(scratch), configuration, {}, targets, form=any_form)
        info = ModelInfo.load(args.target)
        config = read_head_config(Path(scratch), method="eagle3", parallel=recipe.parallel, target=info)
    torch.manual_seed(args.seed)
    head = DraftHead(config)
    head.set_targets(targets)
    with torch.no_grad():
        head.embed_tokens.weight.copy_(target.get_input_embeddings().weight.float().cpu())
    losses = train_head(
        head,
        target,
        pool,
        steps=args.steps,
        batch=args.batch,
        peak=args.learning_rate,
        device=args.device,
        seed=args.seed,
    )
    for folder, form in forms.items():
        configuration = head_configuration(recipe, target.config, form=form, mask_token_id=mask_token_id)
        save_head(args.output / folder, configuration, head.state_dict(), targets, form=form)
    minutes = (time.perf_counter() - started) / 60
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "a CPU"
    parameters = sum(p.numel() for p in head.parameters())
    return (
        f"`python -m checkpoints.train_heads {name} --steps {args.steps} --batch {args.batch} "
        f"--pool {args.pool} --learning-rate {args.learning_rate} "
        f"--seed {args.seed}`:\n{parameters:,} parameters, {minutes:.1f} minutes on "
        f"{where}, torch {torch.__version__}, final losses by depth "
        f"{', '.join(f'{loss:.3f}' for loss in losses)}."
    )


def _unused_token(pool: Pool, vocab_size: int) -> int:
    """The last of the tokens that occur least often, prompts included."""
    counts = torch.bincount(pool.ids.flatten(), minlength=vocab_size)
    return vocab_size - 1 - int(counts.flip(0).argmin())


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training_parser(
        "python -m checkpoints.train_heads", __doc__, RECIPES, steps=3_000, batch=64, pool=30_000, measure=300
    )
    parser.add_argument("--target", type=Path, default=HERE / TARGET, help="model directory (default: qwen3)")
    args = parsed(parser, arguments)
    target, pool = (None, None) if args.measure_only else _target_and_pool(args)
    for name in args.names:
        recipe = RECIPES[name]
        trained = "" if pool is None else train_one(name, recipe, target, pool, args)
        for folder, form in recipe.folders.items():
            found = measure(
                args.output / folder,
                args.target,
                parallel=recipe.parallel,
                count=args.measure,
                device=args.device,
            )
            for prompts, (stats, delivered) in found.items():
                print(
                    f"{folder}, {prompts}: accepted length {stats.mean_acceptance_length:.2f}, "
                    f"{delivered:.2f} tokens of answers per step",
                    flush=True,
                )
            if trained:
                write_card(args.output / folder, recipe, form, found, trained)


def _target_and_pool(args: argparse.Namespace) -> tuple[Any, Pool]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target: Any = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    target = target.to(args.device).eval().requires_grad_(False)
    started = time.perf_counter()
    pool = continuations(target, training_prompts(tokenizer, size=args.pool, seed=args.seed))
    print(f"{len(pool.ids):,} sequences, {time.perf_counter() - started:.0f} s", flush=True)
    return target, pool


if __name__ == "__main__":
    main()
