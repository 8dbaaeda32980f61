"""MTP layers on V1: what they propose is what their arithmetic, written out here, gives; tokens are those
without drafts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.oracle.errors import ConfigError
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.distributed.thread_workers import use_threads
from tests.support.equal_tokens import EqualTokens
from tests.support.proposals import record_proposals
from tests.support.tiny_models import make_model
from tests.v1.driver import make_runner

LAYERS = 2
DRAFTS = 3
SIZE = 32

FAMILIES: Mapping[str, dict[str, Any]] = {
    "qwen3-next": {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
    "qwen3.5": {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
    "qwen3.5-moe": {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
    "deepseek-v3": {},
    "glm4-moe": {},
}
QWEN = {"eh_proj": "fc", "enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "norm": "norm"}
DEEPSEEK = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "norm": "shared_head.norm"}


class Whole:
    """A model whose last layer stands for the MTP layer, and the checkpoint that has it so."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model: Any = make_model(family, num_hidden_layers=LAYERS + 1, **FAMILIES[family])
        self.family, self.folder = family, folder
        generator = torch.Generator().manual_seed(5)
        self.extra = {
            "eh_proj": torch.randn(SIZE, 2 * SIZE, generator=generator) / 4,
            **{name: 1 + torch.randn(SIZE, generator=generator) / 4 for name in ("enorm", "hnorm", "norm")},
        }
        self.is_qwen = family.startswith("qwen")
        self.model.generation_config.eos_token_id = None
        self.model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["num_hidden_layers"] = LAYERS
        for field in ("layer_types", "mlp_layer_types"):
            if config.get(field):
                config[field] = config[field][:LAYERS]
        (folder / "config.json").write_text(json.dumps(config))
        stored = load_file(folder / "model.safetensors")
        renamed = {self._stored_name(name): tensor for name, tensor in stored.items()}
        names, begin = (QWEN, "mtp") if self.is_qwen else (DEEPSEEK, f"model.layers.{LAYERS}")
        renamed |= {f"{begin}.{names[name]}.weight": tensor for name, tensor in self.extra.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})

    def _stored_name(self, name: str) -> str:
        begin = f"model.layers.{LAYERS}."
        return f"mtp.layers.0.{name.removeprefix(begin)}" if self.is_qwen and name.startswith(begin) else name

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMSNorm; Qwen3-Next's weights are the difference to one."""
        weight = self.extra[name] + (1 if self.is_qwen else 0)
        eps = self.model.config.rms_norm_eps
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    @torch.inference_mode()
    def drafts(self, target: Any, token_ids: Sequence[int], count: int) -> list[int]:
        """Greedy drafts after these tokens, of which the target has computed all but the last.

        DeepSeek-V3 (arXiv:2412.19437), equations 21 to 23: h' = M [RMSNorm(h); RMSNorm(Emb(t))] (in the
        checkpoints the embedding comes first), h = TRM(h'), P = OutHead(h).
        """
        tokens = list(token_ids[1:])
        hidden = target.model(
            input_ids=torch.tensor([list(token_ids[:-1])]), use_cache=False
        ).last_hidden_state
        found: list[int] = []
        for _ in range(count):
            embedded = target.get_input_embeddings()(torch.tensor([tokens]))
            x = torch.cat([self.norm(embedded, "enorm"), self.norm(hidden, "hnorm")], dim=-1)
            x = x @ self.extra["eh_proj"].T
            positions = torch.arange(len(tokens))[None]
            future = torch.full((1, 1, len(tokens), len(tokens)), float("-inf")).triu(1)
            axes = 3 if "3.5" in self.family else None  # temporal, height, width: alike for text
            rotary = self.model.model.rotary_emb(
                x, position_ids=positions if axes is None else positions.expand(axes, -1, -1)
            )
            block = self.model.model.layers[LAYERS]
            out = block(x, attention_mask=future, position_embeddings=rotary, position_ids=positions)
            out = self.norm(out, "norm")
            found.append(int(target.lm_head(out[0, -1]).argmax()))
            tokens.append(found[-1])
            hidden = torch.cat([hidden, out[:, -1:]], dim=1)
        return found


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        *((family, {}) for family in FAMILIES),
        ("deepseek-v3", {"tensor_parallel_size": 2, "prefill_context_parallel_size": 2}),
        ("deepseek-v3", {"pipeline_parallel_size": 2, "tensor_parallel_size": 2}),
        ("qwen3-next", {"pipeline_parallel_size": 2}),
        ("qwen3.5", {"data_parallel_size": 2}),
    ],
    ids=str,
)
def test_proposals_and_tokens(
    family: str, sizes: dict[str, int], tmp_path: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch)
    whole = Whole(family, tmp_path)
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    seen = record_proposals(monkeypatch)
    prompts = [[5 + (i * 37 + j * j) % 120 for j in range(n)] for i, n in enumerate((1, 23, 9))]
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    with LLM(
        tmp_path, device="cpu", dtype="float32", max_model_len=48, block_size=4, max_num_seqs=4,
        max_num_batched_tokens=16, num_gpu_blocks_override=40,
        speculative_config={"method": "mtp", "num_speculative_tokens": DRAFTS}, **sizes,
    ) as llm:  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        llm.reload_weights()
        again = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    plain = reference(tmp_path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for prompt, output in zip([*prompts, *prompts], [*outputs, *again], strict=True):
        equal.compare(prompt, plain.generate(prompt, 10), list(output.outputs[0].token_ids))
    equal.check()
    assert {len(drafts) for _, drafts in seen} >= {DRAFTS}
    for token_ids, drafts in seen[::4]:
        assert drafts == whole.drafts(plain.model, token_ids, len(drafts))


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    Whole("deepseek-v3", tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    begin = f"model.layers.{LAYERS}."
    speculative = {"method": "deepseek_mtp", "num_speculative_tokens": 2}
    for kept, words in (
        ({n: t for n, t in stored.items() if n != f"{begin}eh_proj.weight"}, "do not fit: eh_proj"),
        ({n: t for n, t in stored.items() if n != f"{begin}input_layernorm.weight"}, "input_layernorm"),
        ({n: t for n, t in stored.items() if not n.startswith(begin)}, "the checkpoint has no MTP layer"),
    ):
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=words):
            make_runner(tmp_path, speculative_config=speculative)
    speculative["model"] = str(tmp_path.parent)
    with pytest.raises(ConfigError, match="own checkpoint; leave it unset"):
        make_runner(tmp_path, speculative_config=speculative)
