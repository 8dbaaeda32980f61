"""Random requests with aborts against their solo runs, on both runners: ``python -m tests.v2.stress`` runs
200 on each in four parts, the first and third with drafts.

    python -m tests.v2.stress [--runner v1 v2] [--part 0 1 2 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
PARTS = (NGRAM, None, NGRAM, None)
SMALL = {"head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
TOKENIZER = Path(__file__).parents[2] / "checkpoints" / "qwen3"


def check(count: int, *, seed: int, drafts: dict[str, Any] | None, folder: Path, on_v1: bool = False) -> Any:
    """Run them on a small model; alone they run on V1 on a CPU, without drafts. Returns the counts of
    drafts.

    on_v1: run them together on V1, too, by whatever says that it is forced.
    """
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
        partial(LLM if on_v1 else make_llm, folder, dtype="float32", speculative_config=drafts),
        Reference(folder).logits,
        tokenizer,
        block_size=16,
        sizes=sizes,
        make_alone=partial(LLM, folder, device="cpu", dtype="float32", block_size=16),
    )
    assert (stats.num_draft_tokens > 0) == (drafts is not None)
    return stats


def main() -> None:
    """Raises where a request differs from its solo run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runner", nargs="+", choices=("v1", "v2"), default=["v1", "v2"])
    parser.add_argument("--part", nargs="+", type=int, choices=range(4), default=range(4))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for runner in options.runner:
        if runner == "v1":
            os.environ["DODONA_USE_V2_MODEL_RUNNER"] = "0"
        else:
            os.environ.pop("DODONA_USE_V2_MODEL_RUNNER", None)
        for part in options.part:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                stats = check(50, seed=part, drafts=PARTS[part], folder=Path(folder), on_v1=runner == "v1")
            accepted = f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted"
            print(
                f"{runner}, part {part}: 50 requests equal their solo runs; {accepted}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
