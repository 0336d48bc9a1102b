"""Downloads, made only where a user asks for them.

A file is whole or absent: it grows as ``<name>.partial``, is checked, and then renamed. An
interrupted download continues where it stopped.
"""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from matattn import __version__
from matattn.errors import DataError
from matattn.files import sha256, write_text

TIMEOUT = 60.0  # seconds to wait for an answer
ATTEMPTS = 3  # of every request and download
PAUSE = 1.0  # seconds between two attempts
_CHUNK = 2**20


def present(
    path: str | Path, url: str, command: str, download: bool, checksum: str | None = None
) -> Path:
    """Return the file ``path``, fetched from ``url`` if it is absent and ``download`` is true.

    ``command`` is what a user types to get it. Raises DataError when the file is absent and
    ``download`` is false, or when it has changed since it was downloaded.
    """
    path = Path(path)
    if not path.is_file():
        if not download:
            raise DataError(
                f"{path}: no such file; to download it: {command} (or put {url} there by hand, or "
                "set MATATTN_DATA to the folder of data sets)"
            )
        fetch(url, path, checksum)
    _check_unchanged(path)
    return path


def fetch(url: str, path: str | Path, checksum: str | None = None) -> None:
    """Download ``url`` to ``path`` unless that exists; safe in several processes at once.

    The content must have the announced length and, if given, the SHA-256 ``checksum``; a .zip or
    .gz must pass its own check. The SHA-256 is written beside the file, as ``<name>.sha256``.
    Raises DataError when the download fails or the content is wrong.
    """
    path = Path(path)
    with _locked(path):
        if path.is_file():  # another process was first
            return
        partial = path.with_name(f"{path.name}.partial")
        _download(url, partial, path)
        digest = sha256(partial)
        problem = _damage(partial, path.name)
        if checksum is not None and digest != checksum:
            problem = f"its SHA-256 is {digest}, not {checksum}"
        if problem:
            partial.unlink()
            raise DataError(
                f"{url}: what came is not the expected file ({problem}); try again, or look at it "
                f"in a browser and put the right file at {path}"
            )
        write_text(_record(path), f"{digest}  {path.name}\n")
        os.replace(partial, path)


def get_json(url: str) -> Any:
    """Return the JSON document at ``url``; raise DataError when there is none."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _open(url) as response:
                return json.loads(response.read())
        except ValueError as error:
            raise DataError(f"{url}: the answer is not JSON: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS or _is_final(error):
                raise DataError(f"{url}: {_reason(error)}") from error
            time.sleep(PAUSE)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``, which the system frees when the process ends, however it ends."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process to download {path}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); set MATATTN_DATA to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, partial: Path, path: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _continue(url, partial, path.name)
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS or _is_final(error):
                raise DataError(
                    f"{url}: {_reason(error)}; try again later (what came so far is kept), or "
                    f"download it elsewhere, put it at {path}, or set MATATTN_DATA to a folder "
                    "that has it"
                ) from error
            time.sleep(PAUSE)


def _continue(url: str, partial: Path, name: str) -> None:
    """Download the rest of ``partial``; raise OSError when the connection ends too early."""
    have = partial.stat().st_size if partial.is_file() else 0
    try:
        response = _open(url, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return  # the file is complete; only its renaming was missing
        partial.unlink()
        response = _open(url)
    with response:
        sent = response.headers.get("Content-Range", "")
        if response.status == 206 and not sent.startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise ConnectionError(f"the server sent {sent!r} instead of the rest from {have}")
        start = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(partial, "ab" if start else "wb") as file, _progress() as progress:
            bar = progress.add_task(name, completed=start, total=total)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(bar, len(chunk))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


def _open(url: str, headers: dict[str, str] | None = None) -> Any:
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: expected an address that begins with https:// or http://")
    agent = {"User-Agent": f"matattn/{__version__}"}
    request = urllib.request.Request(url, headers=agent | (headers or {}))
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
    if response.status not in (200, 206):
        response.close()
        raise urllib.error.HTTPError(url, response.status, "no content", response.headers, None)
    return response


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would get the same answer."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, urllib.error.HTTPError) and error.code < 500


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    return f"no download: {reason or type(error).__name__}"


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), console=console, transient=True,
                    disable=not console.is_terminal)  # fmt: skip


def _damage(file: Path, name: str) -> str | None:
    """Return what is wrong with an archive by its own checksums, or None."""
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
            return f"{bad} in it is damaged" if bad else None
        if name.endswith(".gz"):
            with gzip.open(file) as content:
                while content.read(_CHUNK):
                    pass
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        return f"{error}"
    return None


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check_unchanged(path: Path) -> None:
    record = _record(path)
    if record.is_file() and record.read_text(encoding="utf-8").split()[:1] != [sha256(path)]:
        raise DataError(
            f"{path}: is not the file that was downloaded (see {record.name}); delete both to "
            "download it again"
        )
