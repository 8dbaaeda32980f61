"""Drafts for speculative decoding on V2. See docs/speculation.md."""
