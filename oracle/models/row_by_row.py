"""Model types that runner V1 computes row by row, and those that it does not serve.

docs/models.md has what a run of every type says; tests hold it, these lists and rules/dodona.yaml to one
another. V1 itself does not choose by them: it tries each model that is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

ROW_BY_ROW: tuple[str, ...] = (
    "axk2",
    "bart",
    "big_bird",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "bloom",
    "deepseek_v32",
    "deepseek_v4",
    "doge",
    "dory",
    "dots3_note_text",
    "falcon",
    "git",
    "glm_moe_dsa",
    "gpt_neo",
    "gpt_neox_japanese",
    "hy_v4",
    "inkling2_loop_text",
    "inkling2_text",
    "inkling_text",
    "marian",
    "mbart",
    "megatron-bert",
    "minimax",
    "mllama_text_model",
    "mpt",
    "mvp",
    "nemotron_h",
    "openai-gpt",
    "pegasus",
    "plbart",
    "qwen4_exp_text",
    "recurrent_gemma",
    "reformer",
    "rembert",
    "roformer",
    "rwkv",
    "trocr",
    "whisper",
    "xglm",
    "xlstm",
    "zamba2",
)
"""Types of language models that are computed row by row."""

PACKED_FROM: Mapping[str, str] = {"codegen": "5.24", "gptj": "5.24"}
"""Types that are packed from this version of transformers on, and row by row before."""

CAUSAL_FROM: Mapping[str, str] = {
    "big_bird": "5.18",
    "megatron-bert": "5.18",
    "moshi": "5.18",
    "rembert": "5.18",
    "roformer": "5.18",
}
"""Types whose causal language model sees later tokens before this version of transformers."""

ROW_BY_ROW_WRAPPERS: tuple[str, ...] = (
    "Gemma4UnifiedForConditionalGeneration",
    "MossTranscribeDiarizeForConditionalGeneration",
)
"""Architectures that are computed row by row because of the model around the language model."""

UNSERVED: Mapping[str, str] = {
    "blt": "reads bytes in patches that a second model cuts; transformers itself can't generate with it",
    "cpmant": "sees later tokens of the prompt, so its logits differ from pass to pass",
    "prophetnet": "continues its cache by one token only, and then differs from itself",
    "xlm": "generates by filling in a mask token after the text",
    "xlnet": "generates by filling in a token after the text, and sees later tokens of the prompt",
}
"""Types of language models that V1 does not serve, and what they do."""

UNSERVED_ARCHITECTURES: Mapping[str, str] = {
    "Gemma4AssistantForCausalLM": "a draft model, which continues hidden states of another model",
    "Gemma4UnifiedAssistantForCausalLM": "a draft model, which continues hidden states of another model",
}
"""The same for models that share a language model's type with models that V1 serves."""

_TASKS = ("embed", "classify", "token_classify")
POOLED_ALONE: Mapping[str, tuple[str, ...]] = {
    "convbert": _TASKS,
    "cpmant": _TASKS,
    "fnet": _TASKS,
    "nystromformer": _TASKS,
    "xlnet": ("classify",),
    "xlstm": _TASKS,
    "yoso": _TASKS,
}
"""Types of text models that see padding, and the tasks for which a pooling runner computes their prompts one
by one therefore; docs/pooling.md has what runs say."""

POOLED_WHOLE: tuple[str, ...] = ("bert-generation",)
"""Types of causal language models whose model without a head sees later tokens."""

UNPOOLED: Mapping[str, str] = {
    "blt": "reads bytes in patches that a second model cuts; transformers can't compute its base model",
    "funnel": "halves a sequence from block to block, and does not compute short ones",
    "inkling2_loop_text": "goes through its layers several times: rounding differs by more than 1e-5",
    "perceiver": "takes no token ids by that name, and gives states of its latents, not of tokens",
}
"""Types that are not served for pooling, and what they do."""
