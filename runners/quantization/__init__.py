"""Quantized checkpoints: their storage formats, and linear layers whose weights stay compressed."""
