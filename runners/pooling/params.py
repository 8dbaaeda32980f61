"""`PoolingParams`: what a request asks of a pooling model."""

from __future__ import annotations

from dataclasses import dataclass

from dodona.runners.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """Parameters of one prompt, under vLLM's names. Raises InvalidRequestError for what is out of range."""

    dimensions: int | None = None
    """Leading elements of an embedding that are kept, before it is normalized; None: `pooler_config`'s. Only
    for models whose config.json says that it was trained for this (`is_matryoshka`,
    `matryoshka_dimensions`)."""
    use_activation: bool | None = None
    """Normalize an embedding; make probabilities of a classifier's logits. None: as the engine is
    configured."""
    truncate_prompt_tokens: int | None = None
    """Cut a text to this many tokens, special ones included; -1: to `max_model_len`. None: a text that is too
    long is refused."""

    def __post_init__(self) -> None:
        for name, least in (("dimensions", 1), ("truncate_prompt_tokens", -1)):
            value = getattr(self, name)
            wrong = value is not None and (not isinstance(value, int) or isinstance(value, bool))
            if wrong or (value is not None and (value < least or value == 0)):
                raise InvalidRequestError(f"{name} must be a whole number of at least 1, got {value!r:.40}")
        if self.use_activation not in (None, True, False):
            raise InvalidRequestError(
                f"use_activation must be true, false or None: {self.use_activation!r:.40}"
            )


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """What a pooling runner is told of a request beside its tokens."""

    params: PoolingParams
    token_type_ids: tuple[int, ...] | None = None
    """Segment of each token, where the tokenizer makes two of a pair of texts."""
