"""The self-check lets the right models through and names what is wrong with others."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, RwkvConfig

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.v1 import attention
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.patterns import CAUSAL
from dodona.runners.v1.self_check import self_check
from dodona.runners.v1.step_layout import StepLayout
from dodona.runners.v1.watched_cache import WatchedCache, unusual_uses
from tests.support import every_family
from tests.support.tiny_models import SLIDING_WINDOW, make_model


def _check(family: str, **overrides):
    return self_check(PackedModel(make_model(family, **overrides)), max_model_len=256)


def test_a_prompt_is_longer_than_two_windows():
    found = _check("gemma2")
    assert found.prompt_lengths[0] > 2 * SLIDING_WINDOW
    assert found.paged < 1e-5
    assert found.plain_cached < 1e-5


def test_layers_that_reuse_keys_and_values_compute_all_tokens_of_a_step(monkeypatch):
    # With a number of logits, Gemma 4 computes its last layers for the last tokens alone.
    layer_types = ["sliding_attention", "full_attention"] * 3
    sizes = {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "layer_types": layer_types}
    monkeypatch.setitem(every_family.SPECIAL, "gemma4_text", sizes)
    config = every_family.tiny_config("gemma4_text")
    assert config.num_kv_shared_layers == 2
    model = PackedModel(every_family.make_model(config))
    assert len(model.calls) == 6
    assert self_check(model, max_model_len=256).paged < 1e-5


@pytest.mark.parametrize("length", [1, 2, 3, 7, 25])
def test_short_sequence_limits(length):
    model = PackedModel(make_model("mistral"))
    assert max(self_check(model, max_model_len=length).prompt_lengths) == min(length, 21)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_half_precision(family, dtype):
    model = PackedModel(make_model(family).to(dtype))
    assert model.kv_dtype == dtype
    self_check(model, max_model_len=256)


def test_windows_are_known_beyond_the_length_of_the_check():
    model = PackedModel(make_model("mistral", sliding_window=4096))
    assert {layer.sliding_window for layer in model.layers} == {4096}


def _ignore_window(model, patch):
    model.patterns = (CAUSAL,) * len(model.calls)


def _swap_keys_and_values(model, patch):
    gather = PagedKVCache.gather
    patch.setattr(PagedKVCache, "gather", lambda *args: gather(*args)[::-1])


def _mix_layers_up(model, patch):
    gather = PagedKVCache.gather
    patch.setattr(PagedKVCache, "gather", lambda cache, call, slots: gather(cache, 1 - call, slots))


def _shift_positions(model, patch):
    made = StepLayout.__init__

    def init(self, *args):
        made(self, *args)
        self.positions = self.positions - self.positions.min()

    patch.setattr(StepLayout, "__init__", init)


def _forget_softcap(model, patch):
    attend = attention._attend
    patch.setattr(attention, "_attend", lambda *a, softcap=None, **kw: attend(*a, **kw))


def _forget_sinks(model, patch):
    attend = attention._attend
    patch.setattr(attention, "_attend", lambda *a, sinks=None, **kw: attend(*a, **kw))


def _give_no_number(model, patch):
    next(iter(model.model.parameters())).data[:] = float("nan")


@pytest.mark.parametrize(
    ("family", "damage"),
    [
        ("mistral", _ignore_window),
        ("llama", _swap_keys_and_values),
        ("llama", _mix_layers_up),
        ("llama", _shift_positions),
        ("gemma2", _forget_softcap),
        ("gpt-oss", _forget_sinks),
        ("llama", _give_no_number),
    ],
)
def test_a_damaged_path_is_refused(monkeypatch, family, damage):
    model = PackedModel(make_model(family))
    damage(model, monkeypatch)
    with pytest.raises(
        UnsupportedConfiguration, match=f"self-check of {model.name} at load.*differs"
    ) as caught:
        self_check(model, max_model_len=256)
    assert caught.value.features == ("architecture",)


def test_bidirectional_attention_is_refused():
    with pytest.raises(UnsupportedConfiguration, match="neither causal, nor sliding-window, nor chunked"):
        PackedModel(make_model("gemma3", use_bidirectional_attention=True))


def test_positions_taken_from_a_cache_are_refused():
    # The scale of Llama 4's attention grows every 8192 tokens, far beyond any self-check.
    with pytest.raises(UnsupportedConfiguration, match=r"more of a cache than .*: get_seq_length"):
        _check("llama4", attn_temperature_tuning=True)


def test_an_indexer_is_refused_whatever_its_reach():
    with pytest.raises(UnsupportedConfiguration, match="does not take the masks and calls of packed rows"):
        _check("deepseek-v32", index_topk=2048)


def test_watched_cache():
    cache = WatchedCache(make_model("llama").config)
    keys = torch.zeros(1, 2, 3, 8)
    for _ in range(2):
        cache.begin_pass()
        assert cache.get_seq_length() in (0, 3)
        assert cache.get_mask_sizes(3, 0)
        assert cache.is_sliding == [False, False]
        assert cache.update(keys, keys, 0)[0].shape[2] in (3, 6)
        assert unusual_uses(cache) == ()
    assert cache.get_seq_length(1) == 0
    assert len(cache.layers) == 2
    assert unusual_uses(cache) == ("get_seq_length", "layers")


_SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BloomConfig(**_SMALL, n_head=4), "position_ids"),
        (RwkvConfig(**_SMALL), "position_ids|attention interface"),
    ],
    ids=["ALiBi", "state-space"],
)
def test_what_does_not_fit_is_refused_by_name(config, why):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(UnsupportedConfiguration, match=why) as caught:
        self_check(PackedModel(model), max_model_len=256)
    assert type(model).__name__ in str(caught.value)
