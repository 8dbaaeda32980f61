"""V2 for pooling models."""
