"""All workers of one runner: started together, asked together, and ended together.

Whatever ends one of them ends all: ranks wait for each other in every step.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

from dodona.oracle.errors import DodonaError
from dodona.runners.distributed.messages import Answer, Failure, Message, Stop
from dodona.runners.distributed.own_folder import OwnFolder
from dodona.runners.distributed.process import worker_processes
from dodona.runners.distributed.worker_handle import Ending, Launched, WorkerHandle
from dodona.runners.errors import EngineSetupError, WorkerError
from dodona.runners.phases import check_not_given_up

_GRACE = 2.0
"""Seconds after a failure in which the other ranks' failures are gathered: the cause is among them."""

_PATIENCE = 10.0
"""Seconds in which workers that were told to stop must have ended."""

_SLICE = 0.25
"""Seconds between two looks at the time, and whether the start was given up."""

Launch = Callable[[int, Path], AbstractContextManager[Launched]]
"""Starts the workers of so many ranks, which may use a folder of this machine. The context ends after each of
them was ended, and lets go of what they shared."""


class Workers:
    """The workers of the ranks 0 .. count-1. Only one thread may use them. whose: follows a rank in errors.
    launch: what starts them. given_up: once it is set, they are ended, and who waits gets EngineSetupError.

    Every method raises WorkerError where a worker died, gave no answer in time or failed in a step. All
    workers are then ended.
    """

    def __init__(
        self,
        count: int,
        whose: str = "",
        launch: Launch = worker_processes,
        given_up: Event | None = None,
    ) -> None:
        self._whose = whose
        self._given_up = given_up
        folder = OwnFolder("dodona-workers-")
        self._ended_by: WorkerError | None = None
        self._early: dict[int, deque[Answer]] = {rank: deque() for rank in range(count)}
        """By rank, answers to later messages than those that are waited for."""
        self._shared = ExitStack()
        self._shared.callback(folder.remove)
        try:
            launched = self._shared.enter_context(launch(count, folder.path))
        except BaseException:
            self._shared.close()
            raise
        self._processes = list(launched.workers)
        self.store = launched.store
        """See `Launched.store`."""
        self.devices = tuple(worker.device for worker in launched.workers)
        """By rank, see `WorkerHandle`."""

    def tell(self, message: Message, ranks: Sequence[int] | None = None) -> None:
        """Send a message to some ranks (None: all), pickled once."""
        if self._ended_by is not None:
            raise self._ended_by
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        for rank in range(len(self._processes)) if ranks is None else ranks:
            # A worker that is gone is found when answers are waited for.
            self._processes[rank].send(data)

    def answers(
        self, ranks: Sequence[int], what: str, limit_s: float | None, *, all_or_none: bool = False
    ) -> list[Any]:
        """The values that some ranks answer with, in the order of `ranks`.

        what: what they do, for errors. limit_s: seconds that they may take; None: as long as they live.

        Where all of them answered and some failed, the workers live on: raises what failed if all failed
        alike, which is not the fault of a rank, else WorkerError. all_or_none: ranks that did it can't work
        with ranks that did not, so that all end with that WorkerError.
        """
        found = self._gather(set(ranks), what, limit_s)
        failures = {rank: answer for rank, answer in found.items() if isinstance(answer, Failure)}
        if failures:
            first = min(failures, key=lambda rank: failures[rank].at)
            error = failures[first].error
            alike = {(type(f.error), str(f.error)) for f in failures.values()}
            if len(failures) == len(ranks) and len(alike) == 1 and isinstance(error, DodonaError):
                raise error
            if all_or_none:
                self._end_by_failure(f"{what} (now the ranks differ, and all end)", failures, ())
            raise self._error(
                first, f"failed in {what}: {_text(error)}", failures[first].traceback
            ) from error
        return [answer.value for rank in ranks if not isinstance(answer := found[rank], Failure)]

    def stop(self) -> None:
        """Let all workers end in order, and kill those that don't. Idempotent."""
        if self._processes:
            self.tell(Stop())
        deadline = time.monotonic() + _PATIENCE
        for process in self._processes:
            process.end(max(0.0, deadline - time.monotonic()))
        self._let_go()

    def kill(self) -> Mapping[int, Ending]:
        """End all workers at once. Returns how they ended, by rank: the endings of the dead are their own."""
        endings = {process.rank: process.end(0.0) for process in self._processes}
        self._let_go()
        return endings

    # --- Parts

    def _let_go(self) -> None:
        self._processes.clear()
        self._shared.close()

    def _gather(self, ranks: set[int], what: str, limit_s: float | None) -> Mapping[int, Answer]:
        """The answers of `ranks`; ends all workers and raises WorkerError unless all of them answered."""
        began = time.monotonic()
        deadline = None if limit_s is None else began + limit_s
        found = {rank: self._early[rank].popleft() for rank in ranks if self._early[rank]}
        unasked: dict[int, Failure] = {}
        gone: list[int] = []
        by_connection = {process.connection: process for process in self._processes}
        while not ranks <= found.keys() or self._has_cause_elsewhere(ranks, found, unasked, gone):
            ready = wait([c for c, process in by_connection.items() if process.rank not in gone], _SLICE)
            if not ready:
                self._end_if_given_up()
                lost = [p.rank for p in self._processes if p.rank not in gone and p.is_lost()]
                if not lost:
                    if deadline is not None and time.monotonic() >= deadline:
                        break
                    continue
                gone += lost
            for connection in ready:
                process = by_connection[connection]  # type: ignore[index]
                answer = process.receive()
                if answer is None:
                    gone.append(process.rank)
                elif process.rank in ranks and process.rank not in found:
                    found[process.rank] = answer
                elif isinstance(answer, Failure):
                    unasked[process.rank] = answer
                else:
                    self._early[process.rank].append(answer)
            if gone or unasked or any(isinstance(answer, Failure) for answer in found.values()):
                grace = time.monotonic() + _GRACE
                deadline = grace if deadline is None else min(deadline, grace)
        if not gone and not unasked and ranks <= found.keys():
            return found
        failures = {**unasked, **{r: a for r, a in found.items() if isinstance(a, Failure)}}
        if gone or failures:
            self._end_by_failure(what, failures, gone)
        self._end_by_time(what, ranks - found.keys(), time.monotonic() - began)

    def _end_if_given_up(self) -> None:
        try:
            check_not_given_up(self._given_up)
        except EngineSetupError:
            self.kill()
            raise

    def _has_cause_elsewhere(
        self,
        ranks: set[int],
        found: Mapping[int, Answer],
        unasked: Mapping[int, Failure],
        gone: Sequence[int],
    ) -> bool:
        """Whether some of `ranks` failed, and the others may show why: when a rank dies, those that wait for
        it fail too, and can be the first to say so."""
        failed = any(isinstance(answer, Failure) for answer in found.values())
        return failed and len({*ranks, *unasked, *gone}) < len(self._processes)

    def _end_by_failure(self, what: str, failures: Mapping[int, Failure], gone: Sequence[int]) -> NoReturn:
        """Raise the error of the rank that began it: when one dies, the others fail for want of it."""
        processes = {process.rank: process for process in self._processes}
        endings = self.kill()
        died = [rank for rank in gone if rank not in failures]
        causes = [rank for rank in died if not endings[rank].by_itself]
        if failures and not causes:
            rank = min(failures, key=lambda each: failures[each].at)
            cause = failures[rank]
            happened = f"failed in {what}: {_text(cause.error)}"
            self._ended_by = self._error(rank, happened, cause.traceback, processes[rank])
            raise self._ended_by from cause.error
        rank = (causes or died)[0]
        self._ended_by = self._error(rank, f"{endings[rank].text} in {what}", "", processes[rank])
        raise self._ended_by

    def _end_by_time(self, what: str, missing: set[int], waited_s: float) -> NoReturn:
        processes = list(self._processes)
        stopped = [process for process in processes if process.is_stopped()]
        for process in processes:
            process.dump_stack()
        time.sleep(0.5)
        process = stopped[0] if stopped else next(p for p in processes if p.rank in missing)
        self.kill()
        state = "is stopped and gave no answer" if stopped else "gave no answer"
        happened = f"{state} within {waited_s:.0f} s to {what}"
        self._ended_by = self._error(process.rank, happened, "", process)
        raise self._ended_by

    def _error(
        self, rank: int, happened: str, trace: str, process: WorkerHandle | None = None
    ) -> WorkerError:
        process = process or self._processes[rank]
        tail = [*trace.rstrip().splitlines(), *process.log_tail()]
        return WorkerError(rank, f"worker of rank {rank}{self._whose} ({process.process}) {happened}", tail)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
