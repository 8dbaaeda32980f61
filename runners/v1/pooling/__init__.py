"""Pooling on V1: transformers' models over whole prompts, batched with padding or one by one."""
