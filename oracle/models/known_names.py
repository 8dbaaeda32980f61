"""What the name of a published model tells of its structure, for those who ask without its files.

A name says the family, hence the architecture and, with the family's defaults, what kind of model it is; a
suffix says that the weights are quantized. Names that several structures share are left out.
"""

from __future__ import annotations

import functools
import re
from typing import Final

FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    (r"deepseek-r1-distill-llama", "LlamaForCausalLM"),
    (r"deepseek-r1-distill-qwen", "Qwen2ForCausalLM"),
    (r"deepseek-r1-0528-qwen3", "Qwen3ForCausalLM"),
    (r"deepseek-v4", "DeepseekV4ForCausalLM"),
    (r"deepseek-v3\.2", "DeepseekV32ForCausalLM"),
    (r"deepseek-(v3|r1)", "DeepseekV3ForCausalLM"),
    (r"deepseek-(coder-)?v2", "DeepseekV2ForCausalLM"),
    (r"kimi-k2", "DeepseekV3ForCausalLM"),
    (r"llama-4", "Llama4ForConditionalGeneration"),
    (r"llama-3\.2-(11|90)b", "MllamaForConditionalGeneration"),
    (r"(code|tiny)?-?llama-?(2|3|7b|13b|34b|70b|1\.1b)", "LlamaForCausalLM"),
    (r"codellama|tinyllama|vicuna-", "LlamaForCausalLM"),
    (r"yi-(1\.5-)?(6|9|34)b", "LlamaForCausalLM"),
    (r"falcon3-(1|3|7|10)b", "LlamaForCausalLM"),
    (r"smollm2?-(135|360|1\.7)", "LlamaForCausalLM"),
    (r"qwen3-next-", "Qwen3NextForCausalLM"),
    (r"qwen3-vl-\d+b-a\d+b", "Qwen3VLMoeForConditionalGeneration"),
    (r"qwen3-vl-\d", "Qwen3VLForConditionalGeneration"),
    (r"qwen3-(coder-)?\d+b-a\d+b", "Qwen3MoeForCausalLM"),
    (r"qwen3-[\d.]+b", "Qwen3ForCausalLM"),
    (r"qwen2\.5-vl-", "Qwen2_5_VLForConditionalGeneration"),
    (r"qwen2-vl-", "Qwen2VLForConditionalGeneration"),
    (r"qwen1\.5-moe|qwen2-57b-a14b", "Qwen2MoeForCausalLM"),
    (r"qwen(1\.5|2|2\.5)-(coder-|math-)?[\d.]+b|qwq-32b", "Qwen2ForCausalLM"),
    (r"mixtral-8x", "MixtralForCausalLM"),
    (r"mistral-small-3\.[12]", "Mistral3ForConditionalGeneration"),
    (
        r"mistral-(7b|nemo|large-instruct-24|small-(24b|instruct-2409))|ministral-8b|zephyr-7b",
        "MistralForCausalLM",
    ),
    (r"gemma-3n-", "Gemma3nForConditionalGeneration"),
    (r"gemma-3-(270m|1b)", "Gemma3ForCausalLM"),
    (r"gemma-3-\d", "Gemma3ForConditionalGeneration"),
    (r"gemma-2-\d", "Gemma2ForCausalLM"),
    (r"gemma-(1\.1-)?[27]b", "GemmaForCausalLM"),
    (r"gpt-oss-", "GptOssForCausalLM"),
    (r"phi-3(\.5)?-mini|phi-3-medium|phi-4($|-mini|-reasoning)", "Phi3ForCausalLM"),
    (r"phi-[12](\.5)?$", "PhiForCausalLM"),
    (r"granite-4\.0-(h-|tiny)", "GraniteMoeHybridForCausalLM"),
    (r"granite-3\.\d-\d+b-a\d+m", "GraniteMoeForCausalLM"),
    (r"granite-3\.\d-[28]b", "GraniteForCausalLM"),
    (r"glm-4\.[56]($|-air|-fp8)", "Glm4MoeForCausalLM"),
    (r"glm-4-(9|32)b-0414", "Glm4ForCausalLM"),
    (r"falcon-h1-", "FalconH1ForCausalLM"),
    (r"falcon-(7|40|180)b", "FalconForCausalLM"),
    (r"jamba-", "JambaForCausalLM"),
    (r"mamba-[\d.]+[mb]-hf", "MambaForCausalLM"),
    (r"minimax-m2", "MiniMaxM2ForCausalLM"),
    (r"olmo-2-", "Olmo2ForCausalLM"),
    (r"olmoe-", "OlmoeForCausalLM"),
    (r"command-(r7b|a-03)", "Cohere2ForCausalLM"),
    (r"command-r", "CohereForCausalLM"),
    (r"opt-[\d.]+[mb]", "OPTForCausalLM"),
    (r"pythia-", "GPTNeoXForCausalLM"),
    (r"gpt2($|-)", "GPT2LMHeadModel"),
    (r"bge-m3$", "XLMRobertaModel"),
    (r"bge-(small|base|large)-", "BertModel"),
    (r"whisper-", "WhisperForConditionalGeneration"),
)
"""Patterns of lower-case names without their owner, in order, and the architecture of what fits."""

_QUANTIZED: Final = re.compile(r"fp8|awq|gptq|int[48]|w[48]a(8|16)|nvfp4|mxfp4|[48]bit|bnb|quantized")
_SHIPPED_QUANTIZED: Final = re.compile(r"deepseek-(v3|r1($|-0528$)|v4)|gpt-oss-|kimi-k2|minimax-m2")
_OTHERS: Final = re.compile(
    r"gguf|embedding|reranker|reward|guard|lora|adapter|eagle|draft|medusa|-mtp|speculator"
)


@functools.lru_cache(maxsize=1024)
def architecture_of(name: str) -> str | None:
    """The architecture that a model's name tells; None where the name tells none."""
    short = name.rstrip("/").rpartition("/")[2].lower()
    if _OTHERS.search(short):
        return None
    return next((found for pattern, found in FAMILIES if re.search(rf"(^|[-_]){pattern}", short)), None)


def is_quantized_name(name: str) -> bool:
    """Whether a model's name tells that its weights are quantized, or its family is published so."""
    short = name.rpartition("/")[2].lower()
    return bool(_QUANTIZED.search(short) or _SHIPPED_QUANTIZED.search(short))
