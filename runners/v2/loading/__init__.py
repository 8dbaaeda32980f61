"""Weights into memory, and memory for KV blocks."""
