#!/usr/bin/env bash
# A model of each kind on one host.
set -euo pipefail
export HF_TOKEN="${HF_TOKEN:-}"
MODEL=Qwen/Qwen3-30B-A3B-FP8
TP=${TP:-4}

vllm serve "$MODEL" --tensor-parallel "$TP" -dp 2 -ep --max-model-len 32k \
  --enable-dbo --all2all-backend deepep_low_latency --port 8000 > moe.log 2>&1 &

VLLM_USE_V2_MODEL_RUNNER=0 vllm serve meta-llama/Llama-3.1-8B-Instruct -dp 2 --port 8001
