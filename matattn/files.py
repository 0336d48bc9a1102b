"""Atomic writing: a file is either whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matattn.errors import WriteError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a ``.partial`` path to write to, and rename it to ``path`` unless the block fails.

    Raises WriteError, an OSError, in place of the system's errors, which name no file when a disk
    is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_sealed(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file atomically, with its SHA-256 after the content.

    NumPy and PyTorch read such an archive like any other. By themselves they would miss a wrong bit
    in some parts of it.
    """
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(content)
        file.write(_seal(content))


def read_sealed(path: str | Path) -> bytes:
    """Return the content of a file of ``write_sealed``.

    Raises ValueError when it is not as it was written, and OSError when it cannot be read.
    """
    content = Path(path).read_bytes()
    end = len(content) - len(_seal(b""))
    if end < 0 or content[end:] != _seal(memoryview(content)[:end]):
        raise ValueError("its checksum is wrong or missing")
    return content[:end]


def _seal(content: bytes | memoryview) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def encodable(text: str) -> str:
    r"""Return ``text`` with escapes for what a UTF-8 table cannot hold.

    Escaped are surrogates, which stand for undecodable bytes of a file name or for half a character
    of JSON, and carriage returns, which would end a line of a CSV file. Bytes of a name that are
    undecodable only in an ASCII locale are decoded.
    """
    with suppress(UnicodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\r", "\\r")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def is_partial(path: Path) -> bool:
    """Return whether this is the unfinished file of a process that was killed or still writes."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
