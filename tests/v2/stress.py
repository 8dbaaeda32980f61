"""Random requests with aborts on V2 against their solo runs: ``python -m tests.v2.stress`` runs 200 in four
parts, the first and third with drafts; numbers of parts, from 0, run these alone."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
SMALL = {"head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
TOKENIZER = Path(__file__).parents[2] / "checkpoints" / "qwen3"


def check(count: int, *, seed: int, drafts: dict[str, Any] | None, folder: Path) -> Any:
    """Run them on a small model; alone they run on V1, without drafts. Returns the counts of drafts."""
    from transformers import AutoTokenizer

    from dodona.runners.llm import LLM
    from tests.support.fast_interpreter import speed_up
    from tests.support.stress import Sizes, check_stress
    from tests.support.tiny_models import make_model
    from tests.v2.test_greedy_tokens import Reference
    from tests.v2.test_llm import make_llm

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    make_model("llama", vocab_size=len(tokenizer), **SMALL).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = Sizes(
        count, longest_prompt=20, most_tokens=6, grammars=True, few_tokens=True, num_blocks=10, seed=seed
    )
    speed_up()
    stats = check_stress(
        partial(make_llm, folder, dtype="float32", speculative_config=drafts),
        Reference(folder).logits,
        tokenizer,
        block_size=16,
        sizes=sizes,
        make_alone=partial(LLM, folder, device="cpu", dtype="float32", block_size=16),
    )
    assert (stats.num_draft_tokens > 0) == (drafts is not None)
    return stats


def main() -> None:
    """Four times 50 requests, or the parts that are named; raises where one differs from its solo run."""
    parts = [int(part) for part in sys.argv[1:]] or range(4)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for seed in parts:
        drafts = (NGRAM, None, NGRAM, None)[seed]
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            stats = check(50, seed=seed, drafts=drafts, folder=Path(folder))
        accepted = f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted"
        print(
            f"50 requests equal their solo runs; {accepted}; {time.perf_counter() - start:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
