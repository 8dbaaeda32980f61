"""Types of mixture-of-experts models whose experts runner V1 reads quantized.

tests/data/models/quantized-experts-VERSION.json has what a run of every type says; a test holds these lists
to it.
"""

from __future__ import annotations

from collections.abc import Mapping

STORED: tuple[str, ...] = (
    "afmoe",
    "axk1",
    "axk2",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "hy_v3",
    "jamba",
    "kimi_linear",
    "kolibri1",
    "laguna",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "solar_open",
)
"""Types whose checkpoints store each expert's weights by themselves, and whose quantized ones are read."""

AT_LOAD: tuple[str, ...] = (
    "afmoe",
    "aria_text",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling2_text",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "kolibri1",
    "laguna",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen4_exp_text",
    "solar_open",
    "zaya",
)
"""Types whose experts `--quantization` quantizes while they are read."""

AT_LOAD_FROM: Mapping[str, str] = {"aria_text": "5.18"}
"""Those of `AT_LOAD` whose experts are no stacks before this version of transformers, and would stay as they
are."""

MXFP4: tuple[str, ...] = ("gpt_oss",)
"""Types whose experts are read as MXFP4 numbers."""


def reads_quantized_experts(model_type: str, *, at_load: bool) -> bool:
    """Whether V1 computes with quantized experts of the type. at_load: they are quantized while they are
    read, and not in the checkpoint."""
    return model_type in (AT_LOAD if at_load else STORED)
