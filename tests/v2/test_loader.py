"""Weights: sharded, tied and untied; and what is refused, by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner
from dodona.runners.limits import resolve_limits
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2.loading.loader import fill_randomly, load_safetensors
from dodona.runners.v2.models.registry import checkpoint_views, make_spec
from dodona.runners.v2.models.weights import allocate_weights
from tests.v2.drive import DEVICE, generate, make_runner
from tests.v2.test_greedy_tokens import Reference

CPU = torch.device("cpu")


def views_of(path):
    config, model = EngineConfig.from_flat(str(path), device="cpu"), ModelInfo.load(path)
    spec = make_spec(model, resolve_limits(config, model))
    weights = allocate_weights(spec, CPU)
    return spec, weights, checkpoint_views(spec, weights)


@pytest.fixture
def model_dir(tiny_models, tmp_path):
    """A copy of a tiny model that a test may spoil, and its tensors."""
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("qwen3"), path)
    return path, load_file(path / "model.safetensors")


def load(path):
    spec, weights, views = views_of(path)
    load_safetensors(path, views, tied=spec.tie_word_embeddings)
    return weights


def shard(path, tensors, places):
    (path / "model.safetensors").unlink()
    names = {name: f"model-{places(i)}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_an_index_beside_model_safetensors_is_not_read(model_dir):
    path, tensors = model_dir
    shard(path, {name: tensor + 1 for name, tensor in tensors.items()}, lambda i: i % 2)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    name = "model.embed_tokens.weight"
    assert torch.equal(plain.state_dict()[name], tensors[name].float())
    assert torch.equal(load(path).embedding, tensors[name].float())


def test_fused_weights_hold_the_checkpoint(model_dir):
    path, tensors = model_dir
    weights = load(path)
    layer = weights.layers[1]
    prefix = "model.layers.1."
    q, k, v = (tensors[f"{prefix}self_attn.{n}_proj.weight"] for n in "qkv")
    assert torch.equal(layer.qkv, torch.cat([q, k, v]))
    gate, up = (tensors[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up"))
    assert torch.equal(layer.gate_up, torch.cat([gate, up]))
    assert torch.equal(layer.k_norm, tensors[prefix + "self_attn.k_norm.weight"])
    assert torch.equal(weights.lm_head, tensors["lm_head.weight"])
    assert weights.lm_head is not weights.embedding


def test_every_weight_is_filled(model_dir):
    path, _ = model_dir
    spec, _, views = views_of(path)
    for view in views.values():
        view.fill_(float("nan"))
    load_safetensors(path, views, tied=spec.tie_word_embeddings)
    assert all(view.isfinite().all() for view in views.values())


def test_shards_equal_one_file(model_dir):
    path, tensors = model_dir
    whole = load(path)
    shard(path, tensors, lambda i: i % 3)
    parts = load(path)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert torch.equal(a.qkv, b.qkv)
        assert torch.equal(a.down, b.down)
    assert torch.equal(whole.embedding, parts.embedding)


def test_tied_embeddings(tiny_models):
    path = tiny_models.path("llama", tie_word_embeddings=True)
    weights = load(path)
    assert weights.lm_head is weights.embedding
    assert torch.equal(weights.embedding, load_file(path / "model.safetensors")["model.embed_tokens.weight"])


def test_a_stored_copy_of_tied_embeddings_and_rotary_buffers_are_left_out(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama", tie_word_embeddings=True), path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, path / "model.safetensors")
    load(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ["1 of 25 tensors", "layers.1.mlp.up_proj"]),
        (lambda t: t.update({"model.surplus": torch.ones(2)}), ["unexpected tensor 'model.surplus'"]),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(2)}),
            ["unexpected tensor 'model.layers.0.self_attn.q_proj.bias'"],
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            ["'model.norm.weight' has shape [31]", "makes it [32]"],
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            ["'model.norm.weight' has type I8"],
        ),
    ],
    ids=["missing", "unexpected", "bias", "shape", "type"],
)
def test_spoilt_checkpoints_are_refused_by_name(model_dir, spoil, words):
    path, tensors = model_dir
    spoil(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ConfigError) as error:
        load(path)
    for word in [*words, str(path)]:
        assert word in str(error.value)


def test_missing_shard_is_named(model_dir):
    path, tensors = model_dir
    shard(path, tensors, lambda i: i % 2)
    (path / "model-1.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"index\.json: names files that are not there: model-1\.safetensors"
    ):
        load(path)


def test_no_or_broken_safetensors(model_dir):
    path, _ = model_dir
    (path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="weights are read from safetensors"):
        load(path)


def test_a_tensor_in_two_shards_is_refused(model_dir):
    path, tensors = model_dir
    shard(path, tensors, lambda i: i % 2)
    other = load_file(path / "model-1.safetensors")
    first = sorted(tensors)[0]
    save_file({**other, first: tensors[first].clone()}, path / "model-1.safetensors")
    with pytest.raises(ConfigError, match="is also in model-0"):
        load(path)


def test_dummy_weights_depend_on_the_seed_alone(model_dir):
    path, _ = model_dir
    made = []
    for seed in (1, 1, 2):
        _, weights, views = views_of(path)
        fill_randomly(views, seed=seed)
        made.append(weights)
    assert torch.equal(made[0].layers[0].qkv, made[1].layers[0].qkv)
    assert not torch.equal(made[0].layers[0].qkv, made[2].layers[0].qkv)
    assert made[0].final_norm.mean().item() == pytest.approx(1.0, abs=0.05)
    assert made[0].layers[1].o.std().item() == pytest.approx(0.02, rel=0.3)


def test_reload_in_place(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama", head_dim=16), path)
    other = tiny_models.path("llama", head_dim=16, seed=1)
    prompt = [[5, 9, 17, 3]]
    runner = make_runner(path)
    before = generate(runner, prompt, max_tokens=4).outputs
    shutil.copy(other / "model.safetensors", path / "model.safetensors")
    runner.reload_weights()
    after = generate(runner, prompt, max_tokens=4).outputs
    assert after == generate(make_runner(other), prompt, max_tokens=4).outputs
    assert after != before


def test_a_refused_reload_changes_nothing(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama", head_dim=16), path)
    runner = make_runner(path)
    before = generate(runner, [[5, 9, 17, 3]], max_tokens=4).outputs
    tensors = {name: 2 * tensor for name, tensor in load_file(path / "model.safetensors").items()}
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight"):
        runner.reload_weights()
    assert generate(runner, [[5, 9, 17, 3]], max_tokens=4).outputs == before


@pytest.mark.usefixtures("no_warm_up")
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_head_of_its_own_serves_though_config_json_ties_it(tiny_models, tmp_path, monkeypatch, runner):
    """Tools for fine-tuning write such checkpoints. transformers uses the head, and so do both runners."""
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("qwen3", head_dim=16, tie_word_embeddings=True), path)
    tensors = load_file(path / "model.safetensors")
    tied = Reference(path)
    generator = torch.Generator().manual_seed(1)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn(embedding.shape, generator=generator) * 0.1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True
    reference = Reference(path)
    prompt = list(range(2, 9))
    assert not torch.allclose(reference.logits(prompt), tied.logits(prompt))
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "max_model_len": 64}
    if runner == "v1":
        monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
        sizes["device"] = DEVICE
    config = EngineConfig.from_flat(str(path), skip_tokenizer_init=True, num_gpu_blocks_override=40, **sizes)
    verdict = select_runner(config, environment=assumed_gpu() if runner == "v2" else None)
    with LLM.from_verdict(verdict) as llm:
        assert llm.verdict.runner == runner
        (output,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    reference.check([prompt], [list(output.outputs[0].token_ids)], max_tokens=4)


def test_a_tied_model_does_not_reload_a_head_of_its_own(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("qwen3", tie_word_embeddings=True), path)
    tensors = load_file(path / "model.safetensors")
    _, _, views = views_of(path)
    for view in views.values():
        view.fill_(0.5)
    changed = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    save_file(changed, path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head\.weight has other values"):
        load_safetensors(path, views, tied=True)
    assert all(bool((view == 0.5).all()) for view in views.values())
