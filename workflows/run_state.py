"""Whether a run folder is being written, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from matattn.errors import ConfigError
from matattn.files import write_text

FINISHED, FAILED = "metrics.json", "error.txt"


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"))


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; an error is written to ``error.txt``.

    Raises ConfigError when another process works there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder).acquire(blocking=False):
            try:
                (folder / FAILED).unlink(missing_ok=True)
                yield
            except Exception as error:
                if (folder / "config.yaml").exists():
                    text = " ".join(str(error).split()) or type(error).__name__
                    write_text(folder / FAILED, f"{type(error).__name__}: {text}\n")
                raise
    except Timeout:
        raise ConfigError(
            f"{folder}: another process is working on this run; wait for it, or choose another "
            "paths.output_dir"
        ) from None


def state(folder: Path) -> tuple[str, str]:
    """finished, running, failed or stopped, and the error of a failed run."""
    if (folder / FINISHED).exists():
        return "finished", ""
    try:
        with _lock(folder).acquire(blocking=False):
            pass
    except (Timeout, OSError):
        return "running", ""
    failed = folder / FAILED
    if failed.exists():
        return "failed", failed.read_text(encoding="utf-8", errors="replace").strip()
    return "stopped", ""
