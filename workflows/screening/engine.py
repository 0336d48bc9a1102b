"""The loop of a screening: pieces are read here, and become parts in other processes.

Processes of this machine, or a cluster of Dask: one path, through an executor of
``concurrent.futures``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from matattn.errors import MatattnError
from matattn.files import write_json
from matattn.parallel import process_pool
from matattn.runtime import cores
from matattn.workflows.screening import parts
from matattn.workflows.screening.plan import Plan
from matattn.workflows.screening.sources import Piece, pieces

_MOST_BYTES = 2**26  # of the pieces of a part
_AHEAD = 2  # parts that wait or run, for each worker; they bound the memory
_TRIES = 3  # of a part whose process was killed

# Opens an executor, with a function that says how many workers it has by now.
Workers = Callable[[], AbstractContextManager[tuple[Executor, Callable[[], int]]]]


@dataclass
class Progress:
    """How far a screening is, in structures: those of earlier runs, of this one, with values."""

    earlier: int = 0
    made: int = 0
    with_values: int = 0
    parts: int = 0  # in the sources, of all shards
    killed: dict[int, int] = field(default_factory=dict)  # tries of parts


def run(
    plan: Plan,
    workers: Workers,
    advance: Callable[[int], Any] = lambda structures: None,
) -> Progress:
    """Make the parts that are missing; ``advance`` hears of the structures of every part.

    Raises MatattnError when a process is killed again and again, or the cluster is gone. What was
    finished stays.
    """
    progress = Progress()
    jobs = _missing(plan, progress, advance)
    left: dict[int, list[Piece]] = {}
    while True:
        with workers() as (executor, number):
            try:
                _work(plan, executor, number, jobs, left, progress, advance)
                break
            except BrokenProcessPool:
                for part in left:
                    progress.killed[part] = progress.killed.get(part, 0) + 1
                    if progress.killed[part] >= _TRIES:
                        raise MatattnError(
                            f"a process was killed {_TRIES} times at part {part} or beside it; is "
                            "memory short? The same command goes on with the parts that are left"
                        ) from None
            except CancelledError:
                raise MatattnError(
                    "the scheduler is gone; the same command goes on with the parts that are left"
                ) from None
    write_json(plan.finished(plan.shard), {"parts": progress.parts})  # only now they all exist
    return progress


def _work(
    plan: Plan,
    executor: Executor,
    workers: Callable[[], int],
    jobs: Iterator[tuple[int, list[Piece]]],
    left: dict[int, list[Piece]],
    progress: Progress,
    advance: Callable[[int], Any],
) -> None:
    """Make parts until none is left; ``left`` holds those that are not finished."""
    sent = plan.without_sources()
    running: dict[Future[parts.Done], int] = {
        executor.submit(parts.make, sent, number, job): number for number, job in left.items()
    }
    while True:
        for number, job in islice(jobs, max(0, _AHEAD * workers() - len(running))):
            left[number] = job
            running[executor.submit(parts.make, sent, number, job)] = number
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            done = future.result()
            del left[running.pop(future)]
            progress.made += done.rows
            progress.with_values += done.with_values
            advance(done.rows)


def _missing(
    plan: Plan, progress: Progress, advance: Callable[[int], Any]
) -> Iterator[tuple[int, list[Piece]]]:
    """Yield number and pieces of every part of the shard that is not finished."""
    found = pieces(map(Path, plan.sources))
    for number, job in enumerate(_divided(found, plan.rows)):
        progress.parts = number + 1
        if number % plan.shards == plan.shard:
            if parts.is_finished(plan, number):
                done = parts.count(plan.part(number))
                progress.earlier += done.rows
                progress.with_values += done.with_values
                advance(done.rows)
            else:
                yield number, job


def _divided(found: Iterator[Piece], rows: int) -> Iterator[list[Piece]]:
    """Yield lists of ``rows`` pieces, or of fewer that are long."""
    job: list[Piece] = []
    size = 0
    for piece in found:
        job.append(piece)
        size += piece.size
        if len(job) == rows or size > _MOST_BYTES:
            yield job
            job, size = [], 0
    if job:
        yield job


@contextmanager
def local(processes: int | None = None) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Open processes of this machine, one for each core unless ``processes`` says otherwise."""
    number = processes or cores()
    pool = process_pool(number, parts.start)
    if pool is None:
        raise MatattnError("this system cannot start processes")
    try:
        yield pool, lambda: number
    finally:
        pool.shutdown(cancel_futures=True)
