"""Drafts for speculative decoding on V1: who proposes tokens, and from what. See docs/speculation.md."""
