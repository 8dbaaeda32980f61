"""Workers that fail: the engine's end names the rank and the cause, and nothing is left behind."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.runners.distributed.messages import Call, Execute, Sample, Start, Transfers
from dodona.runners.distributed.own_folder import OwnFolder
from dodona.runners.distributed.process import worker_processes
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.distributed.runner import DistributedRunner
from dodona.runners.distributed.workers import Launch, Workers
from dodona.runners.errors import EngineSetupError, WorkerError
from dodona.runners.limits import Limits
from dodona.runners.v1.runner import V1Runner
from tests.support.child_interpreter import child_environment
from tests.support.plain_worker import PlainRunner

LIMITS = Limits("cpu", "float32", 8, 1, 8, 4, None, 0.9)
LIMIT = 120.0
RANKS = (0, 1)


@contextmanager
def workers(
    count: int = 2, launch: Launch = worker_processes, given_up: threading.Event | None = None
) -> Iterator[Workers]:
    """Workers that import neither torch nor a model. Each is a rank to itself: they exchange nothing."""
    started = Workers(count, launch=launch, given_up=given_up)
    try:
        for rank in range(count):
            start = Start(
                runner_class=PlainRunner,
                config=None,  # type: ignore[arg-type]
                model=None,  # type: ignore[arg-type]
                limits=LIMITS,
                rank=rank,
                sizes=RankSizes(1, 1, 1),
                device_index=rank,
                store=started.store,
                timeout_s=LIMIT,
                start_timeout_s=LIMIT,
            )
            started.tell(start, [rank])
        started.answers(RANKS[:count], "start", LIMIT)
        yield started
    finally:
        started.stop()


def pids(started: Workers) -> list[int]:
    return [process.pid for process in started._processes]


def gone(pid: int) -> bool:
    """Whether no process has this id, not even one that waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def fails(started: Workers, ranks=RANKS, what="execute_model", limit=LIMIT) -> WorkerError:
    """The error that waiting for answers ends with; everything must be gone then."""
    processes = pids(started)
    with pytest.raises(WorkerError) as caught:
        started.answers(ranks, what, limit)
    assert all(map(gone, processes))
    assert not Path(started.store).parent.exists()
    with pytest.raises(WorkerError) as again:
        started.tell(Call("anything"))
    assert again.value is caught.value
    return caught.value


def test_calls_reach_every_rank_and_their_failures_leave_the_workers_alive():
    with workers() as started:
        processes, folder = pids(started), Path(started.store).parent
        started.tell(Call("echo", ("a",), {"b": 1}))
        assert started.answers(RANKS, "echo", LIMIT) == [("a", 1), ("a", 1)]

        started.tell(Call("no_such_method"))
        with pytest.raises(WorkerError, match=r"rank \d .*AttributeError.*no_such_method"):
            started.answers(RANKS, "no_such_method", LIMIT)
        # What all ranks refuse alike is no rank's fault.
        started.tell(Call("refuse", ("block_size",)))
        with pytest.raises(ConfigError, match="block_size"):
            started.answers(RANKS, "refuse", LIMIT)
        # An exception that can't be pickled, and a result that can't.
        for method, words in (("raise_strange", "strange"), ("strange_result", "can't leave the worker")):
            started.tell(Call(method))
            with pytest.raises(WorkerError, match=words):
                started.answers(RANKS, method, LIMIT)

        started.tell(Execute(("step", 1), None))  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        assert started.answers([0], "execute_model", LIMIT) == [("sampled", ("step", 1))]

        # Rank 1 has answered three steps before rank 0 answers the first step.
        steps = [("sleep", 0.3), ("step", 2), ("step", 3)]
        for step in steps:
            started.tell(Execute(step, None), [0])  # type: ignore[arg-type]
            started.tell(Sample(None), [0])
            started.tell(Execute(("step", step[1]), None), [1])  # type: ignore[arg-type]
            started.tell(Transfers(), [1])
        for step in steps:
            expected = [("sampled", step), ("moved", ("step", step[1]))]
            assert started.answers(RANKS, "execute_model", LIMIT) == expected
        started.tell(Call("echo", ("a",), {"b": 2}))
        assert started.answers(RANKS, "echo", LIMIT) == [("a", 2), ("a", 2)]
        started.stop()
        assert all(map(gone, processes))
        assert not folder.exists()


def test_warnings_of_workers_are_warnings(caplog):
    caplog.set_level(logging.INFO, logger="dodona.worker")
    with workers() as started:
        started.tell(Call("warn", ("by the group",)))
        started.answers(RANKS, "warn", LIMIT)
        started.stop()
    said = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert said == {
        line
        for rank in RANKS
        for line in (
            ("INFO", f"rank {rank}: before by the group"),
            ("WARNING", f"rank {rank}: dodona.plain: by the group"),
        )
    }


def test_a_change_that_some_ranks_refuse_ends_all_workers():
    with workers() as started:
        started.tell(Call("refuse", ("model.norm.weight",)))
        with pytest.raises(ConfigError, match=r"model\.norm\.weight"):
            started.answers(RANKS, "reload_weights", LIMIT, all_or_none=True)
        started.tell(Call("echo", ("a",), {"b": 1}), [0])
        started.tell(Call("refuse", ("model.norm.weight",)), [1])
        with pytest.raises(WorkerError, match=r"rank 1 .* failed in reload_weights .*: no") as caught:
            started.answers(RANKS, "reload_weights", LIMIT, all_or_none=True)
        assert isinstance(caught.value.__cause__, ConfigError)
        assert not pids(started)
        with pytest.raises(WorkerError) as again:
            started.tell(Call("echo", ("a",), {"b": 1}))
        assert again.value is caught.value


@pytest.mark.parametrize(("method", "all_or_none"), [("reload_weights", True), ("get_kv_cache_spec", False)])
def test_calls_that_change_weights_are_for_all_ranks_or_none(monkeypatch, method, all_or_none):
    asked = []

    class Recorder(DistributedRunner):
        def _require_workers(self):
            return self

        def tell(self, message):
            pass

        def answers(self, ranks, what, limit_s, **more):
            asked.append((what, more))
            return [None for _ in ranks]

    config = EngineConfig.from_flat("model", device="cpu", tensor_parallel_size=2)
    runner = Recorder(V1Runner, config, None, LIMITS)  # type: ignore[arg-type]
    assert runner.collective_rpc(method) == [None, None]
    assert asked == [(method, {"all_or_none": all_or_none})]


def test_a_step_that_raises_ends_all_workers():
    with workers() as started:
        started.tell(Execute(("raise", "no memory left"), None), [1])  # type: ignore[arg-type]
        started.tell(Execute(("sleep", 60.0), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        error = fails(started, [0])
    assert error.rank == 1
    assert "RuntimeError: no memory left" in str(error)
    assert "about to raise" in str(error)  # its output
    assert isinstance(error.__cause__, RuntimeError)


def test_a_worker_that_dies_is_named_with_its_signal_and_output():
    with workers() as started:
        started.tell(Execute(("die", int(signal.SIGKILL)), None), [1])  # type: ignore[arg-type]
        started.tell(Execute(("raise when peers are gone", 0.3), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        error = fails(started, [0])
    assert error.rank == 1
    assert "killed by SIGKILL" in str(error)
    assert "about to die" in str(error)


def test_a_worker_that_dies_is_named_though_another_says_first_that_it_failed():
    with workers() as started:
        started.tell(Execute(("sleep", 60.0), None), [1])  # type: ignore[arg-type]
        started.tell(Execute(("raise", "the peer closed its connection"), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        threading.Timer(0.5, os.kill, (pids(started)[1], signal.SIGKILL)).start()
        error = fails(started, [0])
    assert error.rank == 1
    assert "killed by SIGKILL" in str(error)


def test_a_worker_that_hangs_is_named_after_the_time_limit():
    with workers() as started:
        os.kill(pids(started)[1], signal.SIGSTOP)
        started.tell(Call("echo", ("a",), {"b": 1}))
        error = fails(started, what="echo", limit=2.0)
    assert error.rank == 1
    assert "is stopped and gave no answer within 2 s to echo" in str(error)


LARGE = bytes(4 << 20)
"""More than a socket holds."""


def test_large_messages_and_answers_do_not_wait_for_each_other():
    """As adapters that go out while log-probabilities of a prompt come back."""
    with workers(1) as started:
        steps = [("step", number, LARGE) for number in range(3)]

        def tell():
            for step in steps:
                started.tell(Execute(step, None))  # type: ignore[arg-type]
                started.tell(Sample(None))

        sender = threading.Thread(target=tell, daemon=True)
        sender.start()
        sender.join(LIMIT)
        assert not sender.is_alive()
        for step in steps:
            assert started.answers([0], "execute_model", LIMIT) == [("sampled", step)]


def test_a_worker_that_does_not_read_is_named_after_the_time_limit():
    before = threading.active_count()
    with workers() as started:
        os.kill(pids(started)[1], signal.SIGSTOP)
        for _ in range(2):
            started.tell(Call("echo", (LARGE,), {"b": 1}))
        error = fails(started, what="echo", limit=2.0)
        assert threading.active_count() <= before
    assert error.rank == 1
    assert "is stopped and gave no answer within 2 s to echo" in str(error)


def test_a_start_that_is_given_up_ends_all_workers_at_once():
    given_up = threading.Event()
    with workers(given_up=given_up) as started:
        processes = pids(started)
        started.tell(Execute(("sleep", 60.0), None))  # type: ignore[arg-type]
        started.tell(Call("echo", ("a",), {"b": 1}))
        threading.Timer(0.5, given_up.set).start()
        with pytest.raises(EngineSetupError, match="given up"):
            started.answers(RANKS, "load_model", None)
        assert all(map(gone, processes))
        assert not Path(started.store).parent.exists()


def test_a_worker_that_computes_for_too_long_shows_where():
    with workers(1) as started:
        started.tell(Execute(("sleep", 60.0), None), [0])  # type: ignore[arg-type]
        started.tell(Sample(None), [0])
        error = fails(started, [0], limit=2.0)
    assert "plain_worker.py" in str(error)


def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path):
    script = tmp_path / "engine.py"
    script.write_text(
        textwrap.dedent(
            """
            import time
            from pathlib import Path
            from tests.distributed.test_workers import Execute, pids, workers
            with workers() as started:
                started.tell(Execute(("sleep", 60.0), None))
                print(*pids(started), Path(started.store).parent, flush=True)
                time.sleep(60)
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script)], env=child_environment(), stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        *words, folder = engine.stdout.readline().split()
        processes = [int(pid) for pid in words]
        assert len(processes) == 2
        OwnFolder("dodona-workers-").remove()
        assert Path(folder).is_dir()
        engine.kill()
    deadline = time.monotonic() + LIMIT
    while not all(map(gone, processes)):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.05)
    OwnFolder("dodona-workers-").remove()
    assert not Path(folder).exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_of_a_dead_process_is_removed_and_nothing_else(temporary: Path) -> None:
    one = OwnFolder("dodona-a-")
    assert one.path.stat().st_mode & 0o777 == 0o700
    for name in ("dodona-a-dead", "dodona-b-of-other-prefix", "target"):
        (temporary / name / "inner").mkdir(parents=True)
        (temporary / name / "owner").touch()
    (temporary / "dodona-a-not-locked-yet").mkdir()
    (temporary / "dodona-a-link").symlink_to(temporary / "target")
    (temporary / "dodona-a-file").touch()
    os.mkfifo(temporary / "dodona-a-pipe")
    before = set(temporary.iterdir())
    other = OwnFolder("dodona-a-")
    assert set(temporary.iterdir()) == {*before, other.path} - {temporary / "dodona-a-dead"}
    if os.fork() == 0:
        one.remove()  # not a child's
        os._exit(0)
    os.wait()
    assert one.path.is_dir()
    for folder in (one, one, other):
        folder.remove()
        assert not folder.path.exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def after_another_process_looked(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        OwnFolder("dodona-a-").remove()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_another_process_looked)
    folder = OwnFolder("dodona-a-")
    assert set(temporary.iterdir()) == {folder.path}
    folder.remove()
