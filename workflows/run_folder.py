"""A run folder: whose it is, whether it is being written, and what became of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from matattn.config import RunConfig, what_matters
from matattn.errors import ConfigError
from matattn.files import is_partial, write_text

FINISHED, FAILED, RECORD = "metrics.json", "error.txt", "config.yaml"
_LOOK = 2.0  # seconds: a report that looks at the run holds the lock for a moment


def _lock(folder: Path) -> FileLock:
    folder = folder.resolve()
    return FileLock(folder.with_name(f".{folder.name}.lock"))


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder.

    Raises ConfigError when another process works there, or nothing can be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: no such folder can be made: {error.strerror} ({error.filename}); choose "
            "another paths.output_dir"
        ) from None
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
    """Write what ends a run to ``error.txt`` in its folder, and remove that of an earlier try."""
    (folder / FAILED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # the disk may be full
            write_text(folder / FAILED, f"{type(error).__name__}: {text}\n")
        raise


def state(folder: Path) -> tuple[str, str]:
    """Return "finished", "running", "failed" or "stopped", and the error of a failed run."""
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


def metrics(folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json of a finished run; raises OSError or ValueError."""
    return json.loads((folder / FINISHED).read_text(encoding="utf-8"))


def record(folder: Path, config: RunConfig, fingerprint: str) -> None:
    """Write the configuration of a run that begins, and the fingerprint of its data."""
    content = {**config.record(), "data_fingerprint": fingerprint}
    write_text(folder / RECORD, yaml.safe_dump(content, sort_keys=False))


def earlier_run(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run in this folder; raises ConfigError for a folder of another use."""
    if not folder.exists() or all(map(is_partial, folder.iterdir())):
        return None
    path = folder / RECORD
    try:
        earlier = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        earlier = None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if not isinstance(earlier, dict) or "data_fingerprint" not in earlier:
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder")
    return earlier


def why_another(folder: Path, earlier: dict[str, Any], config: RunConfig, fingerprint: str) -> str:
    """Return why the run in ``folder`` is not this one, or "" if it is."""
    if earlier["data_fingerprint"] != fingerprint:
        return f"{folder}: the data have changed since this run began; overwrite=true trains again"
    old, new = what_matters(earlier), what_matters(config.record())
    different = [key for name in new for key in _differences(old.get(name), new[name], name)]
    # Runs from before recorded here what the data had decided.
    different = [key for key in different if key not in OF_THE_DATA or _at(new, key) is not None]
    if not different:
        return ""
    reason = (
        f"{folder} holds a run of another configuration ({', '.join(different)} differ); choose "
        "another paths.output_dir, or overwrite=true"
    )
    if (folder / FINISHED).exists() and config.source.kind == "structures":
        reason += f"; to train its model further, choose a folder and init_from={folder / 'model'}"
    return reason


OF_THE_DATA = ("model.elements", "model.readout", "model.vocab_size", "model.num_labels")


def _at(config: dict[str, Any], key: str) -> Any:
    section, name = key.split(".")
    return config[section].get(name)


def _differences(old: Any, new: Any, key: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{key}.{n}")]
    return [] if old == new else [key]


def clear_partial(folder: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for path in [*filter(is_partial, folder.rglob(".*"))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
