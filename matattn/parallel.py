"""The same work for many items, in processes that end with this one."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from matattn.runtime import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    """``run`` of every item, in order, with a progress bar on a terminal.

    There is a process for each core (at most ``most``) and for ``worth_a_process`` items; with one
    or none of them all happens here. ``start`` is called in each process. Ctrl-C, SIGTERM and an
    error in ``run`` end the processes.
    """
    processes = min(cores(), most or cores(), len(items) // worth_a_process)
    console = Console(stderr=True)
    shown = partial(track, description=title, total=len(items), console=console, transient=True,
                    disable=not console.is_terminal)  # fmt: skip
    if processes < 2:
        yield from shown(map(run, items))
        return
    # Without this, a SIGTERM would leave the processes behind; only a main thread may say so.
    main = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, _leave) if main else None
    pool = process_pool(processes, partial(_start, start))
    try:
        yield from shown(pool.map(run, items, chunksize=chunk))
    finally:
        if main:
            signal.signal(signal.SIGTERM, earlier)
        pool.shutdown(cancel_futures=True)


def process_pool(processes: int, start: Callable[[], object]) -> ProcessPoolExecutor:
    """Processes that call ``start`` first.

    They are forked, as Python does by default, but not from a process that has loaded JAX: its
    threads may hold locks that a fork would never see released.
    """
    context = multiprocessing.get_context("forkserver") if "jax" in sys.modules else None
    return ProcessPoolExecutor(processes, mp_context=context, initializer=start)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _start(start: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if start is not None:
        start()
