"""What a model is, read from its directory without transformers."""
