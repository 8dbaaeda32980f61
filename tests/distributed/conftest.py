"""Tiny models and transformers' own answers, as V1's tests have them."""

from tests.v1.conftest import reference, tiny_models

__all__ = ["reference", "tiny_models"]
