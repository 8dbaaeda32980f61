"""A worker's process: `python -m dodona.runners.distributed.worker COMMANDS LIFE`.

COMMANDS and LIFE are numbers of file descriptors that the engine's process opened: a socket for messages, and
a pipe whose end says that this process is gone. A worker never outlives it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dodona.runners.distributed import worker_log
from dodona.runners.distributed.adapters import AdapterReceiver
from dodona.runners.distributed.messages import (
    Answer,
    Call,
    Execute,
    Failure,
    Message,
    Read,
    Result,
    Sample,
    Start,
    Transfers,
)
from dodona.runners.rpc import RPC_METHODS

if TYPE_CHECKING:
    from dodona.runners.interface import PendingOutput, Runner

_ANSWERING = threading.Lock()
"""A failed step may be answered by another thread."""

ENDED_WITH_THE_ENGINE = 70
"""Exit status of a worker whose engine's process is gone."""


def main() -> None:
    """Serve the messages until `Stop`, or until the engine's process is gone."""
    commands, life = (int(argument) for argument in sys.argv[1:3])
    for descriptor in (commands, life):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's, which then stops its workers
    worker_log.configure()
    faulthandler.register(signal.SIGUSR1)  # the engine asks where a worker hangs
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    with Connection(commands) as connection:
        serve(connection)


def serve(connection: Any) -> None:
    """Carry out messages one after the other. A failed step ends the worker; a failed call does not."""
    runner: Runner | None = None
    adapters: AdapterReceiver | None = None
    results: _StepResults | None = None
    samples = joined = False
    try:
        while isinstance(message := _receive(connection), Message):
            try:
                if isinstance(message, Start):
                    joined = message.sizes.world > 1
                    adapters = AdapterReceiver(message.max_adapters) if message.max_adapters else None
                    runner, samples = _start(message)
                    _answer(connection, Result(None))
                elif runner is None:
                    raise RuntimeError(f"{type(message).__name__} before Start")
                elif isinstance(message, Call):
                    if results is not None:
                        results.wait_for_all()
                    _answer(connection, Result(_call(runner, message)))
                elif isinstance(message, Read):
                    _answer(connection, Result(getattr(runner, message.attribute)))
                elif isinstance(message, Execute):
                    if message.sampled is not None and not samples:
                        runner.take_sampled_tokens(message.sampled)
                    if results is not None:
                        results.wait_for_room()
                    step = message.step
                    runner.execute_model(step if adapters is None else adapters.complete(step))
                elif isinstance(message, Transfers):
                    _answer(connection, Result(runner.take_kv_connector_output()))
                elif isinstance(message, Sample):
                    pending = runner.sample_tokens(message.grammar_output)
                    if runner.max_steps_in_flight == 1:
                        output = pending.result()
                        if samples:
                            _answer(connection, Result(output))
                    else:
                        if results is None:
                            results = _StepResults(
                                connection, answers=samples, at_most=runner.max_steps_in_flight
                            )
                        results.put(pending)
                else:
                    break
            except Exception as error:
                if results is not None:  # one thread answers at a time
                    results.close()
                    results = None
                _answer(connection, Failure.of(error))
                if not isinstance(message, Call):
                    break
    finally:
        if results is not None:
            results.close()
        if runner is not None:
            runner.shutdown()
        if joined:
            from dodona.runners.distributed.joining import leave

            leave()


class _StepResults:
    """Reads the results of steps, in a thread of its own: the next step is launched meanwhile.

    answers: whether to answer with them; a failure is answered with in any case. Nothing else is answered
    while steps are under way. at_most: steps under way.
    """

    def __init__(self, connection: Any, *, answers: bool, at_most: int) -> None:
        self._connection = connection
        self._answers = answers
        self._at_most = at_most
        self._room = threading.Semaphore(at_most)
        self._pending: SimpleQueue[PendingOutput | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, pending: PendingOutput) -> None:
        """Read this step's result after those before it."""
        self._room.acquire()
        self._pending.put(pending)

    def wait_for_room(self) -> None:
        """Wait until one more step may be under way: the rank that answers may be ahead of this one."""
        self._wait(1)

    def wait_for_all(self) -> None:
        """Wait until all results are read."""
        self._wait(self._at_most)

    def close(self) -> None:
        """Wait for the results that are left."""
        self._pending.put(None)
        self._thread.join()

    def _wait(self, free: int) -> None:
        for _ in range(free):
            self._room.acquire()
        self._room.release(free)

    def _run(self) -> None:
        while (pending := self._pending.get()) is not None:
            answer: Answer
            try:
                answer = Result(pending.result())
            except Exception as error:
                answer = Failure.of(error)
            self._room.release()
            if not self._answers and isinstance(answer, Result):
                continue
            with contextlib.suppress(OSError):  # the engine's process is gone, or has closed the connection
                _answer(self._connection, answer)


def _call(runner: Runner, call: Call) -> Any:
    if call.method in RPC_METHODS:
        return runner.collective_rpc(call.method, call.args, call.kwargs)[0]
    return getattr(runner, call.method)(*call.args, **call.kwargs)


def _receive(connection: Any) -> Message | None:
    """The next message; None where the engine's process, or its machine, is gone."""
    try:
        message: Message = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
    return message


def _answer(connection: Any, answer: Answer) -> None:
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)  # some exceptions can be pickled, but not read again
    except Exception as error:
        if isinstance(answer, Failure):
            plain = RuntimeError(f"{type(answer.error).__name__}: {answer.error}")
            data = pickle.dumps(Failure(plain, answer.traceback, answer.at))
        else:
            what = type(answer.value).__name__
            data = pickle.dumps(
                Failure.of(TypeError(f"a result of type {what} can't leave the worker: {error}"))
            )
    with _ANSWERING:
        connection.send_bytes(data)


def _start(start: Start) -> tuple[Runner, bool]:
    """Take this rank's device and join the others; returns the runner and whether this rank samples."""
    if start.limits.device == "cuda":
        import torch

        torch.cuda.set_device(start.device_index)
    elif start.sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // start.sharing))
    if start.sizes.world == 1:
        return start.runner_class(start.config, start.model, start.limits), True
    from dodona.runners.distributed.joining import join

    mesh = join(start)
    return start.runner_class(start.config, start.model, start.limits, mesh), mesh.samples


def _end_with(life: int) -> None:
    """End this process, whatever it is doing, once the engine's is gone."""
    os.read(life, 1)  # nothing is ever written: this returns when the other end is closed
    os._exit(ENDED_WITH_THE_ENGINE)


if __name__ == "__main__":
    main()
