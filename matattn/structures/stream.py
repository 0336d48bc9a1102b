"""A stream of the structures of many files, read in processes in the background."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from glob import glob
from itertools import groupby, islice
from pathlib import Path

from matattn.errors import MatattnError
from matattn.parallel import process_pool
from matattn.runtime import cores
from matattn.structures.files import Entry, entries, holds_one, is_found_in_folder

Source = Path | Iterable[str]  # a file, or lines of JSON
WORTH_A_PROCESS = 100  # files that take as long to read as a process takes to start
_FILES_PER_TASK = 16
_TASKS_AHEAD = 4  # of each process; they bound the structures that wait in memory


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Return the files that paths, folders (all structure files in them), globs and "-" name.

    "-" is the standard input: one name a line, or JSON lines. A name without a file stays in the
    list, and becomes an entry with an error.
    """
    sources: list[Source] = []
    for name in inputs:
        if name == "-":
            first = next((line for line in sys.stdin if line.strip()), "")
            if first.lstrip().startswith("{"):
                sources.append(_joined(first, sys.stdin))
            else:
                lines = (line.strip() for line in _joined(first, sys.stdin))
                sources += find_sources(line for line in lines if line not in ("", "-"))
            continue
        is_glob = any(mark in name for mark in "*?[") and not os.path.exists(name)
        matches = sorted(glob(name, recursive=True)) if is_glob else []
        for path in map(Path, matches or [name or "(no name)"]):
            inside = sorted(path.iterdir()) if os.path.isdir(path) else []
            sources += [entry for entry in inside if is_found_in_folder(entry)] or [path]
    return sources


def _joined(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


class StructureStream:
    """An iterator over the entries of all sources, in order, for one ``with`` block.

    Many files with one structure are read in processes, which start with the block; files of many
    structures are read in this process, one structure at a time. Iterating raises MatattnError when
    a process was killed.

    Attributes:
        total: number of structures, if the number of files tells it; else None.
        processes: how many processes read; 0 if none.
        seconds: time spent on reading so far, on one core.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        sources = list(sources)
        alone = sum(_is_task(source) for source in sources)
        self.total = alone if alone == len(sources) else None
        self.processes = min(cores(), alone // WORTH_A_PROCESS)
        self.seconds = 0.0
        self._pool: ProcessPoolExecutor | None = None
        self._groups = _groups(sources)
        self._waiting: deque[Future[tuple[list[Entry], float]] | Iterator[Entry]] = deque()

    def __enter__(self) -> StructureStream:
        if self.processes:
            self._pool = process_pool(self.processes)
            self.processes *= self._pool is not None
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Entry]:
        while self._waiting:
            first = self._waiting.popleft()
            if isinstance(first, Future):
                try:
                    group, seconds = first.result()
                except BrokenProcessPool:
                    raise MatattnError(
                        "a process that reads structures was killed; is memory short?"
                    ) from None
                self.seconds += seconds
                self._fill()
                yield from group
            else:
                self._fill()
                yield from self._timed(first)

    def _fill(self) -> None:
        missing = max(1, _TASKS_AHEAD * self.processes) - len(self._waiting)
        for group in islice(self._groups, missing):
            if self._pool and _is_task(group[0]):
                self._waiting.append(self._pool.submit(_read, group))
            else:
                self._waiting.append(entry for source in group for entry in entries(source))

    def _timed(self, group: Iterator[Entry]) -> Iterator[Entry]:
        while True:
            begin = time.perf_counter()
            entry = next(group, None)
            self.seconds += time.perf_counter() - begin
            if entry is None:
                return
            yield entry


def _is_task(source: Source) -> bool:
    return isinstance(source, Path) and holds_one(source)


def _groups(sources: Iterable[Source]) -> Iterator[list[Source]]:
    for _, run in groupby(sources, key=_is_task):
        while group := list(islice(run, _FILES_PER_TASK)):
            yield group


def _read(group: list[Source]) -> tuple[list[Entry], float]:
    begin = time.process_time()
    read = [entry for source in group for entry in entries(source)]
    return read, time.process_time() - begin
