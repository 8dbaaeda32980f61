"""An engine's configuration under vLLM's names, and the ways in which people write it."""
