"""Whether a run folder is being written, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from matattn.errors import ConfigError
from matattn.files import write_text

FINISHED, FAILED = "metrics.json", "error.txt"
_LOOK = 2.0  # seconds: a report that looks at the run holds the lock for a moment


def _lock(folder: Path) -> FileLock:
    folder = folder.resolve()
    return FileLock(folder.with_name(f".{folder.name}.lock"))


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder.

    Raises ConfigError when another process works there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder).acquire(timeout=_LOOK):
            yield
    except Timeout:
        raise ConfigError(
            f"{folder}: another process is working on this run; wait for it, or choose another "
            "paths.output_dir"
        ) from None


@contextmanager
def keeping_errors(folder: Path) -> Iterator[None]:
    """Write what ends a run to ``error.txt`` in its folder; that of an earlier try goes."""
    (folder / FAILED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # the disk may be full
            write_text(folder / FAILED, f"{type(error).__name__}: {text}\n")
        raise


def state(folder: Path) -> tuple[str, str]:
    """finished, running, failed or stopped, and the error of a failed run."""
    if (folder / FINISHED).exists():
        return "finished", ""
    failed = folder / FAILED
    if failed.exists():
        return "failed", failed.read_text(encoding="utf-8", errors="replace").strip()
    lock = _lock(folder)
    if not Path(lock.lock_file).exists():  # looking leaves nothing behind
        return "stopped", ""
    try:
        with lock.acquire(blocking=False):
            return "stopped", ""
    except (Timeout, OSError):
        return "running", ""
