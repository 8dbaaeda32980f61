"""Writes by a checkpoint's names, against plain indexing; and what is refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.runners.errors import InvalidRequestError
from dodona.runners.weights.tensors import apply_sparse_patches, load_tensors

TIED = {"head": "whole"}


def views() -> dict[str, torch.Tensor]:
    """A whole tensor, two parts of a fused one, and a transposed one."""
    fused = torch.arange(24.0).view(6, 4)
    return {
        "whole": torch.arange(10.0).view(5, 2),
        "first": fused[:2],
        "second": fused[2:],
        "turned": torch.arange(12.0).view(3, 4).t(),
        "packed": torch.arange(8, dtype=torch.int32),
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_patches_equal_plain_indexing(data: st.DataObject) -> None:
    weights = views()
    expected = {name: view.clone() for name, view in weights.items()}
    patches = {}
    for name, view in weights.items():
        places = data.draw(st.lists(st.integers(0, view.numel() - 1), unique=True))
        kind = data.draw(st.sampled_from([torch.int64, torch.int32]))
        values = torch.arange(len(places)).to(view.dtype) + 100
        patches[name] = (torch.tensor(places, dtype=kind), values)
        flat = expected[name].flatten()
        for place, value in zip(places, values, strict=True):
            flat[place] = value
        expected[name] = flat.view(view.shape)
    addresses = [view.data_ptr() for view in weights.values()]
    apply_sparse_patches(weights, patches, tied=TIED)
    for name, view in weights.items():
        assert torch.equal(view, expected[name]), name
    assert [view.data_ptr() for view in weights.values()] == addresses


def indices(*places: int) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64)


GOOD = (indices(1), torch.ones(1))


@pytest.mark.parametrize(
    ("name", "patch", "words"),
    [
        ("hole", GOOD, "the model has no tensor 'hole'; did you mean 'whole'"),
        (7, GOOD, "no tensor 7"),
        ("head", GOOD, "'head' is tied to 'whole'"),
        ("layer.scales", GOOD, "'layer.scales' belongs to a quantized layer, whose tensors change by reload"),
        ("first", (indices(8), torch.ones(1)), r"'first': index 8 is out of 0 \.\. 7"),
        ("first", (indices(-1), torch.ones(1)), "index -1 is out of"),
        ("first", (indices(3, 3), torch.ones(2)), "an index is given twice"),
        ("first", (indices(3), torch.ones(2)), r"\[2\] values for \[1\] indices"),
        ("first", (indices(3)[None], torch.ones(1)), r"indices must be a tensor \[n\] of int64"),
        ("first", (torch.ones(1), torch.ones(1)), "indices must be"),
        ("first", ([3], torch.ones(1)), "indices must be"),
        ("first", (indices(3), torch.ones(1, dtype=torch.int64)), "values are torch.int64"),
        ("first", (indices(3), [1.0]), "expected a torch tensor"),
        ("packed", (indices(3), torch.ones(1)), "values are torch.float32, and the model's torch.int32"),
        ("first", indices(3), r"expected \(indices, values\)"),
    ],
)
def test_a_bad_patch_is_refused_by_name_with_all_others(name: Any, patch: Any, words: str) -> None:
    weights = views()
    before = {each: view.clone() for each, view in weights.items()}
    with pytest.raises(InvalidRequestError, match=words):
        apply_sparse_patches(
            weights, {"whole": GOOD, name: patch, "second": GOOD}, tied=TIED, quantized=["layer"]
        )
    assert all(torch.equal(weights[each], before[each]) for each in weights)


def test_whole_tensors_are_cast_and_others_stay() -> None:
    weights = views()
    new = torch.full((4, 3), 0.5, dtype=torch.bfloat16)
    load_tensors(weights, iter([("turned", new), ("first", torch.zeros(2, 4))]), tied=TIED)
    assert torch.equal(weights["turned"], new.float())
    assert not weights["first"].any()
    assert torch.equal(weights["second"], views()["second"])


@pytest.mark.parametrize("names", [("whole", "head"), ("head", "whole")])
def test_both_names_of_one_tensor_may_be_given_with_equal_values(names: tuple[str, str]) -> None:
    weights, new = views(), torch.full((5, 2), 3.0)
    load_tensors(weights, [(name, new.clone()) for name in names], tied=TIED)
    assert torch.equal(weights["whole"], new)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([("head", torch.ones(5, 2))], "'head' is tied to 'whole'"),
        ([("head", torch.ones(1))], "'head' is tied to 'whole'"),
        ([("head", None)], "'head' is tied to 'whole'"),
        ([("layer.weight", torch.ones(2))], "'layer.weight' belongs to a quantized layer"),
        ([("layer.deeper.weight", torch.ones(2))], "no tensor 'layer.deeper.weight'"),
        ([("first", torch.ones(2, 3))], r"'first' has shape \[2, 3\], and the model's is \[2, 4\]"),
        ([("third", torch.ones(2))], "no tensor 'third'"),
        ([("whole", torch.ones(5, 2))], "'whole' is given twice"),
        (["first"], "expected pairs of name and tensor"),
        ([("packed", torch.ones(8))], "values are torch.float32"),
    ],
)
def test_a_bad_tensor_is_refused_with_all_others(more: list[Any], words: str) -> None:
    weights = views()
    with pytest.raises(InvalidRequestError, match=words):
        load_tensors(weights, [("whole", torch.zeros(5, 2)), *more], tied=TIED, quantized=["layer"])
    assert torch.equal(weights["whole"], views()["whole"])
