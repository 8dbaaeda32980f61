"""Layers that compute no keys and values of their own: they reuse an earlier layer's."""

from __future__ import annotations

from collections.abc import Sequence


def first_shared_layer(layer_types: Sequence[str] | None, layers: int, reusing: int) -> int:
    """The first layer whose keys and values a later one reuses; `layers` where there is none.

    The last `reusing` of `layers` layers reuse those of the last layer of their type before them.
    layer_types: of each layer in order; None: all are of one type.
    """
    types = tuple(layer_types or ("",) * layers)
    first = max(layers - reusing, 0)
    before, after = types[:first], set(types[first:])
    return min((first - 1 - before[::-1].index(kind) for kind in after if kind in before), default=layers)
