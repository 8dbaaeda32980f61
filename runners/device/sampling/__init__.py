"""V2's sampler."""
