"""What the host says of a step's chunks: attention chooses its kernels by it."""

from __future__ import annotations

from tests.v2.drive import generate, make_runner
from tests.v2.test_greedy_tokens import prompts_of


def test_chunks_that_begin_are_told_from_those_that_go_on(tiny_models, monkeypatch):
    runner = make_runner(tiny_models.path("llama", head_dim=16), max_num_batched_tokens=16)
    steps, told = runner.ready.steps, []
    mixed = steps.launch_mixed

    def note(batch, num_tokens, num_decodes, max_fresh_len, max_continued_len, *rest, **options):
        told.append((num_decodes, max_fresh_len, max_continued_len))
        return mixed(batch, num_tokens, num_decodes, max_fresh_len, max_continued_len, *rest, **options)

    monkeypatch.setattr(steps, "launch_mixed", note)
    generate(runner, prompts_of(20, 9, 30), max_tokens=2)
    # 16 tokens a step: the first prompt's beginning; its end, the second, the third's beginning; the rest of
    # the third, beside decodes.
    assert told[:2] == [(0, 16, 0), (0, 9, 4)]
    assert all(fresh == 0 and continued > 0 for _, fresh, continued in told[2:])
    assert len(told) > 2
