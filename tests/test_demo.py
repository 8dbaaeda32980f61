"""`make demo`, as a user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.task import sum_question
from examples.demo import answer_table, unseen_conversations
from tests.conftest import HAS_GPU
from tests.support.child_interpreter import child_environment

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_demo_decides_generates_and_is_right() -> None:
    environment = child_environment(ROOT / "src")
    environment.pop("TRITON_INTERPRET", None)
    environment.pop("DODONA_USE_V2_MODEL_RUNNER", None)
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7 right" in done.stdout
    assert done.stdout.count("✓") == 7
    assert "tokens per step" in done.stdout
    if HAS_GPU:
        assert "Runner v2 for checkpoints/qwen3" in done.stdout
    else:
        assert "Runner v1 for checkpoints/qwen3" in done.stdout
        assert "no Triton with a GPU driver" in done.stdout
        assert "With an NVIDIA GPU: Runner v2" in done.stdout
        assert not done.stderr


def test_a_wrong_answer_is_counted_as_wrong() -> None:
    conversations = [(sum_question(3, 4),), (sum_question(30, 40), sum_question(1, 1))]
    _, right = answer_table(conversations, [" 7", "3"])
    assert right == 1


def test_the_questions_are_unseen() -> None:
    for turns in unseen_conversations():
        assert all(turn.held_out for turn in turns if turn.kind != "recall")
