"""The terminal that a command runs on, which may know few characters, or be gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from matattn.errors import MatattnError


@contextmanager
def terminal() -> Iterator[None]:
    """Run a command: what the terminal cannot show is escaped, and a reader may leave early.

    Names of files and JSON lines from the standard input are read as Python reads those of the
    command line, whatever bytes they hold.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # of a closed descriptor
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr)
    )
    _configure(sys.stdin, encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    _configure(sys.stdout, errors="backslashreplace")
    _configure(sys.stderr, errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or isinstance(error, MatattnError):
            raise
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output: cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        _drop_unless_read(sys.stdout)


def _configure(stream: TextIO, **settings: str) -> None:
    if reconfigure := getattr(stream, "reconfigure", None):  # not of a notebook or a test
        reconfigure(**settings)


def _drop_unless_read(stream: TextIO) -> None:
    """Write what waits, or drop it where nobody reads: Python's last flush would complain."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
