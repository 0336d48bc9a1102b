"""Crystals of files, read behind a progress bar, for commands that take one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matattn.structures.stream import StructureStream


@contextmanager
def crystals(inputs: Sequence[str]) -> Iterator[tuple[StructureStream, Callable[[int], Any]]]:
    """Open the stream of the structures of files, and a function that moves the progress bar.

    Raises MatattnError when no file is given.
    """
    from matattn.errors import MatattnError

    if not inputs:
        raise MatattnError("give structures after the model: files or folders")
    from rich.console import Console
    from rich.progress import Progress

    from matattn.structures.stream import StructureStream, find_sources

    console = Console(stderr=True)
    with (
        StructureStream(find_sources(inputs)) as stream,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("crystals", total=stream.total)
        yield stream, lambda done: progress.advance(bar, done)
