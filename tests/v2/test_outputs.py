"""Results on their way to the host: a tree of tensors comes back as the same tree."""

from __future__ import annotations

import torch

from dodona.kernels.sampling.logprobs import LogprobTensors
from dodona.runners.device.outputs import AsyncOutput, HostCopier, StepResults
from dodona.runners.device.sampling.logprob_values import SampledLogprobs
from dodona.runners.device.sampling.prompt_logprobs import PromptChunk, PromptLogprobs
from tests.v2.drive import DEVICE


def tensors_of(first, rows, width):
    """Entries that all differ, beginning with `first`."""
    ids = torch.arange(first, first + rows * width, dtype=torch.int32, device=DEVICE).view(rows, width)
    return LogprobTensors(ids, -ids.float(), ids[:, 0] + 1)


def results():
    return StepResults(
        rows=[5, 2, 7],
        token_ids=torch.tensor([10, 20, 30], dtype=torch.int32, device=DEVICE),
        logprobs=SampledLogprobs((5, 7), tensors_of(100, 2, 3), (2, 0), tensors_of(200, 3, 1), (1, 2)),
        prompt_logprobs=PromptLogprobs(
            [PromptChunk(2, 0, 0, 2, 1), PromptChunk(7, 2, 4, 1, 0)], tensors_of(300, 3, 2)
        ),
    )


def test_a_tree_is_copied_to_the_host_as_it_is():
    tree = results()
    copy, event = HostCopier(torch.device(DEVICE)).copy(tree)
    if event is not None:
        event.synchronize()
    assert copy.rows is tree.rows
    assert copy.logprobs.top_counts == (2, 0)
    assert copy.prompt_logprobs.chunks is tree.prompt_logprobs.chunks
    pairs = [
        (copy.token_ids, tree.token_ids),
        (copy.logprobs.top.ranks, tree.logprobs.top.ranks),
        (copy.logprobs.given.logprobs, tree.logprobs.given.logprobs),
        (copy.prompt_logprobs.tensors.token_ids, tree.prompt_logprobs.tensors.token_ids),
    ]
    for ours, theirs in pairs:
        assert ours.device.type == "cpu"
        assert torch.equal(ours, theirs.cpu())
        assert ours.data_ptr() != theirs.data_ptr()


def test_a_steps_output_by_row():
    pending = AsyncOutput(results(), HostCopier(torch.device(DEVICE)))
    assert not pending.is_read
    output = pending.result()
    assert pending.is_read
    assert (output.rows, output.token_ids) == ([5, 2, 7], [10, 20, 30])
    assert output.logprobs[5].token_ids == (100, 101, 102, 200)
    assert output.logprobs[5].given_ranks == (201,)
    assert output.logprobs[7].token_ids == (103, 201, 202)
    assert output.logprobs[7].logprobs == (-103.0, -201.0, -202.0)
    assert [entry.token_ids for entry in output.prompt_logprobs[2]] == [(300, 301), (302, 303)]
    assert [entry.token_ids for entry in output.prompt_logprobs[7]] == [(304,)]
    assert pending.result() == output


def test_a_step_without_log_probabilities():
    tokens = torch.tensor([4], dtype=torch.int32, device=DEVICE)
    output = AsyncOutput(StepResults((1,), tokens), HostCopier(torch.device(DEVICE))).result()
    assert (output.token_ids, output.logprobs, output.prompt_logprobs) == ([4], {}, {})
