"""Whole engines with drafts on the trained Qwen3, by every method, for a GPU:

    python -m tests.support.drafts_whole [--runner v1 v2] [--part tokens distribution half] [--draws 50000]

`tokens`: greedy and seeded requests, chunked, preempted and with their prefixes cached, some with grammars,
on an engine with drafts yield what an engine without yields. `distribution`: three tokens of each of many
requests fit the model's exact distribution (chi-square), with a temperature alone, and with filters,
penalties and a bias. In float32. Without a GPU Triton's interpreter runs V2: to try this program with few
draws.

Method `mtp` is of V1's distribution alone: a tiny DeepSeek-V3 with an MTP layer and random weights.

`half`, for V2 on Hopper alone: few rows in bfloat16, which its kernels of small batches serve. Tokens equal
those without drafts but where rounding may decide; the truth is float32, and the measure torch in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
QWEN3 = ROOT / "checkpoints" / "qwen3"
LENGTH = 3
"""Tokens of a request that are counted."""
PROMPT = [125, 307, 282, 70] * 3 + [125]
"""After which the model is sure of nothing, and lookup finds drafts."""
ASKED: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 1.3},
    "every stage": {
        "temperature": 1.5, "top_k": 12, "top_p": 0.98, "min_p": 0.005, "repetition_penalty": 1.2,
        "frequency_penalty": 0.4, "presence_penalty": -0.3, "logit_bias": {20: 1.5},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A model whose distribution is looked at, after a prompt and by what requests ask for."""

    directory: Path
    prompt: Sequence[int]
    asked: Mapping[str, Mapping[str, Any]]


TRAINED = Target(QWEN3, PROMPT, ASKED)


def mtp_target(folder: Path) -> Target:
    """A target with an MTP layer, of random weights. Both look at the last token far more than at others,
    so that some drafts are accepted."""
    from safetensors.torch import load_file, save_file

    from tests.v1.test_mtp import LAYERS, SIZE, Whole

    path = folder / "mtp"
    path.mkdir()
    Whole("deepseek-v3", path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 20
    tensors[f"model.layers.{LAYERS}.eh_proj.weight"][:, :SIZE] += 20 * torch.eye(SIZE)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    asked = {name: {**one, "temperature": 0.25} for name, one in ASKED.items()}
    return Target(path, [5 + (i * 37 + i * i) % 120 for i in range(9)], asked)


def methods(folder: Path) -> dict[str, dict[str, Any]]:
    """`speculative_config` by name. The draft model is the target with noise in its weights; the EAGLE head
    passes on the target's last hidden state, since none is trained."""
    checkpoints = QWEN3.parent
    found: dict[str, dict[str, Any]] = {
        "ngram": {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1},
        "suffix": {"method": "suffix", "suffix_decoding_max_cached_requests": 0},
        "draft_model": {"method": "draft_model", "model": _noisy_target(folder)},
        "eagle": {"method": "eagle", "model": _eagle_head(folder)},
        "eagle3": {"method": "eagle3", "model": str(checkpoints / "qwen3-eagle3")},
        "p-eagle": {
            "method": "eagle3", "model": str(checkpoints / "qwen3-peagle"), "parallel_drafting": True,
        },
    }  # fmt: skip
    return {name: {**config, "num_speculative_tokens": 3} for name, config in found.items()}


def _noisy_target(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    path = folder / "noisy"
    shutil.copytree(QWEN3, path)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: value + 0.1 * value.float().std() * torch.randn(value.shape, generator=generator)
        if value.dim() > 1 else value
        for name, value in load_file(path / "model.safetensors").items()
    }  # fmt: skip
    save_file({n: t.to(torch.bfloat16).contiguous() for n, t in tensors.items()}, path / "model.safetensors")
    return str(path)


def _eagle_head(folder: Path) -> str:
    from safetensors.torch import save_file

    from dodona.oracle.models.head_config import read_head_config
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.runners.drafting.head import DraftHead

    path = folder / "eagle"
    path.mkdir()
    target = json.loads((QWEN3 / "config.json").read_text())
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
             "vocab_size", "rms_norm_eps", "hidden_act", "max_position_embeddings")  # fmt: skip
    config = {name: target[name] for name in names}
    config |= {"num_hidden_layers": 1, "rope_theta": 10000.0, "model_type": "llama"}
    (path / "config.json").write_text(json.dumps(config))
    head = DraftHead(read_head_config(path, method="eagle", parallel=False, target=ModelInfo.load(QWEN3)))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.02
        if value.dim() > 1
        else torch.ones(value.shape)
        for name, value in head.state_dict().items()
        if not name.startswith(("lm_head.", "embed_tokens."))
    }
    size = config["hidden_size"]
    tensors["fc.weight"][:, size:] += torch.eye(size)
    save_file(tensors, path / "model.safetensors")
    return str(path)


@contextmanager
def engine(
    runner: str, speculative: Mapping[str, Any] | None, *, model: Path = QWEN3, **flat: Any
) -> Iterator[Any]:
    """An LLM of the trained Qwen3, or another model, on this runner."""
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import Environment, assumed_gpu
    from dodona.oracle.select import select_runner
    from dodona.runners.llm import LLM

    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = {"v1": "0", "v2": "1"}[runner]
    drafts = None if speculative is None else dict(speculative)
    config = EngineConfig.from_flat(str(model), speculative_config=drafts, **{"dtype": "float32", **flat})
    machine = Environment.detect() if torch.cuda.is_available() or runner == "v1" else assumed_gpu()
    verdict = select_runner(config, environment=machine)
    assert verdict.runner == runner, verdict.explain()
    with LLM.from_verdict(verdict) as llm:
        yield llm


def check_tokens(runner: str, speculative: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises AssertionError where a request's tokens differ from those without drafts."""
    from dodona.runners.sampling.params import SamplingParams
    from tests.v1.test_speculation import assert_equal, make_prompts, mixed_params, run

    prompts, params = make_prompts(), mixed_params()
    short = [i for i, prompt in enumerate(prompts) if len(prompt) <= 120]
    prompts, params = [prompts[i] for i in short], [params[i] for i in short]
    forms = ({"regex": r"(ab){3,9}c"}, {"choice": ["May 12, 2031", "May 13"]})
    params += [
        SamplingParams(temperature=t, seed=3, max_tokens=40, structured_outputs=form)
        for form in forms
        for t in (0.0, 1.0)
    ]  # fmt: skip
    prompts += prompts[:4]
    with engine(runner, None, max_num_seqs=1, enable_prefix_caching=False, max_model_len=160) as llm:
        expected = run(llm, prompts, params)
    for name, config in speculative.items():
        start = time.perf_counter()
        sizes = {"max_num_batched_tokens": 40, "num_gpu_blocks_override": 12, "max_num_seqs": 8}
        with engine(runner, config, max_model_len=160, **sizes) as llm:
            for _ in range(2):  # the second time prompts are in the prefix cache
                assert_equal(run(llm, prompts, params), expected)
            stats = llm.draft_stats()
            preemptions = llm._client.call(lambda _, scheduler: scheduler.num_preemptions)
        assert stats.num_draft_tokens > 0
        print(
            f"{runner} {name}: {2 * len(prompts)} requests have the tokens of decoding without drafts; "
            f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted, {preemptions} "
            f"preemptions; {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def check_half(speculative: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises AssertionError where a request's tokens differ from those without drafts by more than rounding
    explains, where log-probabilities are farther from float32 than twice what torch's in bfloat16 are, or
    where drafts are verified by other kernels than those of small batches."""
    from unittest.mock import patch

    from transformers import AutoModelForCausalLM

    from dodona.runners.sampling.params import SamplingParams
    from dodona.runners.v2 import attention
    from tests.support.stress import Plan, scores_of
    from tests.v1.test_speculation import make_prompts, run

    def logits_in(dtype: torch.dtype) -> Callable[[Sequence[int]], torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(QWEN3, dtype=dtype).to("cuda").eval()

        def logits(token_ids: Sequence[int]) -> torch.Tensor:
            with torch.inference_mode():
                return model(torch.tensor([list(token_ids)], device="cuda")).logits[0, -1].float().cpu()

        return logits

    exact, rounded = logits_in(torch.float32), logits_in(torch.bfloat16)
    prompts = [prompt for prompt in make_prompts() if len(prompt) <= 120]
    common = {"max_tokens": 24, "ignore_eos": True, "seed": 11}
    asked: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 0.0, "logprobs": 0}, {"temperature": 1.0},
        {"temperature": 0.0, "repetition_penalty": 1.2},
    ]  # fmt: skip
    plans = [
        Plan(prompt, SamplingParams(**common, **one), None, close=False)
        for one in asked
        for prompt in prompts
    ]
    prompts, params = [plan.prompt for plan in plans], [plan.params for plan in plans]
    flat = {"dtype": "bfloat16", "max_model_len": 160}
    with engine("v2", None, max_num_seqs=1, enable_prefix_caching=False, **flat) as llm:
        expected = run(llm, prompts, params)
        admission = llm._client.admission
    for name, config in speculative.items():
        start = time.perf_counter()
        small_batch = patch.object(
            attention, "small_batch_attention", side_effect=attention.small_batch_attention
        )
        with small_batch as attend, engine("v2", config, max_num_seqs=4, **flat) as llm:
            # The second time prompts are in the prefix cache.
            found = run(llm, prompts, params) + run(llm, prompts, params)
            stats = llm.draft_stats()
        differing, errors, torch_errors = 0, [], []
        for plan, output, known in zip(plans * 2, found, expected * 2, strict=True):
            mine, theirs = output.outputs[0], known.outputs[0].token_ids
            pairs = enumerate(zip(mine.token_ids, theirs, strict=True))
            if (at := next((i for i, pair in pairs if pair[0] != pair[1]), None)) is not None:
                differing += 1
                context = [*plan.prompt, *theirs[:at]]
                truth = scores_of(exact, plan, admission, 0)(context)
                error = (scores_of(rounded, plan, admission, 0)(context) - truth).abs().max()
                gap = truth.max() - truth[[theirs[at], mine.token_ids[at]]].min()
                assert gap <= 3 * error, f"{name}: {gap:.3g} of the best, torch's rounding is {error:.3g}"
            for i, entry in enumerate(mine.logprobs or ()):
                token, context = mine.token_ids[i], [*plan.prompt, *mine.token_ids[:i]]
                truth = exact(context).log_softmax(-1)[token].item()
                errors.append(entry[token].logprob - truth)
                torch_errors.append(rounded(context).log_softmax(-1)[token].item() - truth)
        size, torch_size = (np.sqrt(np.mean(np.square(values))) for values in (errors, torch_errors))
        calls = [call.kwargs["offsets"] is not None for call in attend.call_args_list]
        print(
            f"v2 {name} in bfloat16: {differing} of {len(found)} requests leave the tokens without drafts "
            f"where rounding may decide; log-probabilities differ from float32 by {size:.2g}, torch's by "
            f"{torch_size:.2g}; {stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted; "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
        assert any(calls), "no step with drafts attended by small_batch_attention"
        assert size < 2 * torch_size
        assert differing < len(found) / 3


def exact_cells(
    target: Target, asked: Mapping[str, Any], draws: int, device: torch.device
) -> dict[tuple[int, ...], float]:
    """Probabilities of runs of LENGTH tokens of which five or more are expected among `draws`, by
    transformers' model and the definitions of sampling."""
    from transformers import AutoModelForCausalLM

    from dodona.kernels.sampling.reference import sanitize, thresholds
    from dodona.runners.sampling import reference as sampling
    from dodona.runners.sampling.params import SamplingParams

    model = AutoModelForCausalLM.from_pretrained(target.directory, dtype=torch.float32).to(device).eval()
    prompt = target.prompt
    params = SamplingParams(**asked)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        contexts = list(found)
        for begin in range(0, len(contexts), 512):
            part = contexts[begin : begin + 512]
            ids = torch.tensor([[*prompt, *context] for context in part], device=device)
            with torch.inference_mode():
                logits = model(ids).logits[:, -1].cpu()
            for context, row in zip(part, logits, strict=True):
                scores = sanitize(row)
                sampling.process_row(scores, sampling.SamplingRow(params, prompt, context, seed=0))
                scores *= sampling.inverse_temperature(params.temperature)
                cut = thresholds(
                    scores[None], torch.tensor([sampling.log_min_p(params.min_p)]),
                    torch.tensor([params.top_k]), torch.tensor([params.top_p]),
                )  # fmt: skip
                shares = scores.masked_fill(scores < cut[0], -torch.inf).double().softmax(0) * found[context]
                for token in torch.nonzero(shares * draws >= 5).flatten().tolist():
                    longer[(*context, token)] = float(shares[token])
        found = longer
    return found


def check_distribution(
    runner: str, target: Target, speculative: Mapping[str, Mapping[str, Any]], draws: int, batch: int
) -> None:
    """Raises AssertionError where tokens do not fit the model's distribution."""
    from scipy import stats as scipy_stats

    from dodona.runners.sampling.params import SamplingParams

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cells = {name: exact_cells(target, asked, draws, device) for name, asked in target.asked.items()}
    for method, config in speculative.items():
        first_seed = int.from_bytes(method.encode()[:6])  # other draws for each method
        flat = {"max_num_seqs": batch, "max_model_len": 64}
        with engine(runner, config, model=target.directory, **flat) as llm:
            for name, asked in target.asked.items():
                start, before = time.perf_counter(), llm.draft_stats()
                parts = [min(10_000, draws - done) for done in range(0, draws, 10_000)]
                params = [
                    SamplingParams(
                        **asked,
                        n=n,
                        seed=first_seed + 1_000_003 * i,
                        max_tokens=LENGTH + 1,
                        ignore_eos=True,
                        detokenize=False,
                    )
                    for i, n in enumerate(parts)
                ]
                outputs = llm.generate(
                    [{"prompt_token_ids": list(target.prompt)}] * len(parts), params, use_tqdm=False
                )
                counts = dict.fromkeys(cells[name], 0)
                rest = 0
                for sequence in (s for output in outputs for s in output.outputs):
                    run = tuple(sequence.token_ids[:LENGTH])
                    if run in counts:
                        counts[run] += 1
                    else:
                        rest += 1
                shares = np.array([*cells[name].values()])
                expected = np.append(shares, 1 - shares.sum()) * draws
                observed = np.array([*counts.values(), rest], dtype=float)
                if expected[-1] < 5:  # too few for a cell of their own
                    expected, observed = expected[:-1], observed[:-1]
                    expected *= observed.sum() / expected.sum()
                pvalue = float(scipy_stats.chisquare(observed, expected).pvalue)
                after = llm.draft_stats()
                drafted = after.num_draft_tokens - before.num_draft_tokens
                accepted = after.num_accepted_tokens - before.num_accepted_tokens
                print(
                    f"{runner} {method}, {name}: {draws} draws, {len(observed)} cells, p = {pvalue:.3f}; "
                    f"{accepted} of {drafted} drafts accepted; {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
                assert drafted > 0
                assert pvalue > 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runner", nargs="+", choices=("v1", "v2"), default=["v1", "v2"])
    parser.add_argument(
        "--part",
        nargs="+",
        choices=("tokens", "distribution", "half"),
        default=["tokens", "distribution"],
    )
    parser.add_argument("--method", nargs="+", help="some of the methods alone")
    parser.add_argument("--draws", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        speculative = methods(Path(folder))
        mtp = {"mtp": {"method": "mtp", "num_speculative_tokens": 3}}
        if options.method:
            mtp = {name: config for name, config in mtp.items() if name in options.method}
            speculative = {name: speculative[name] for name in options.method if name not in mtp}
        for runner in options.runner:
            if "tokens" in options.part:
                check_tokens(runner, speculative)
            if "distribution" in options.part:
                check_distribution(runner, TRAINED, speculative, options.draws, options.batch)
                if mtp and runner == "v1":
                    target = mtp_target(Path(folder))
                    check_distribution(runner, target, mtp, options.draws, options.batch)
            if "half" in options.part and runner == "v2":
                check_half(speculative)


if __name__ == "__main__":
    main()
