"""Parallel maps in processes that end with this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from matattn.runtime import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOKS = 1.0  # seconds between two looks whether the parent lives


def parallel_map(
    run: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    *,
    worth_a_process: int = 1,
    chunk: int = 16,
    most: int | None = None,
    start: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Yield ``run(item)`` of every item, in order, with a progress bar on a terminal.

    Args:
        run: a function that can be sent to another process.
        items: what it is called with.
        title: of the progress bar.
        worth_a_process: one process per so many items; runs serially if that gives fewer than two.
        chunk: items sent to a process at once.
        most: most processes; by default one for each core.
        start: called first in every process.

    Ctrl-C, SIGTERM and an error in ``run`` end the processes.
    """
    processes = min(cores(), most or cores(), len(items) // worth_a_process)
    console = Console(stderr=True)
    shown = partial(track, description=title, total=len(items), console=console, transient=True,
                    disable=not console.is_terminal)  # fmt: skip
    if processes < 2:
        yield from shown(map(run, items))
        return
    # Without this, a SIGTERM would leave the processes behind; only the main thread may set it.
    main = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, _leave) if main else None
    pool = process_pool(processes, start)
    try:
        if pool is None:
            yield from shown(map(run, items))
        else:
            yield from shown(pool.map(run, items, chunksize=chunk))
    finally:
        if main:
            signal.signal(signal.SIGTERM, earlier)
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def process_pool(
    processes: int, start: Callable[[], object] | None = None
) -> ProcessPoolExecutor | None:
    """Return a pool of processes that call ``start`` first; None where the system has none.

    Ctrl-C, which reaches all processes of a terminal, is left to this process, which ends them.
    That is told once, on the standard error: as in a container whose /dev/shm is full or cannot be
    written, there are no semaphores.

    They end by themselves when this process is killed. They are forked, Python's default, unless
    this process has loaded JAX: its threads may hold locks that a fork would never see released.
    """
    context = multiprocessing.get_context("forkserver") if "jax" in sys.modules else None
    running = set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=partial(_watched, start)
        )
        pool.submit(int)  # starts the processes
    except (OSError, ImportError, NotImplementedError, RuntimeError) as error:
        for process in set(multiprocessing.active_children()) - running:
            process.kill()  # it would wait for the rest of the pool
            process.join()
        _tell(f"no further processes here, so this one does all work: {error}")
        return None
    return pool


@cache
def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, which leaves it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)


def _watched(start: Callable[[], object] | None) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if start is not None:
        start()
