"""The folder of a screening: a manifest of what is screened, and a part for so many structures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from matattn import __version__, bundle, pretrained
from matattn.errors import ConfigError, MatattnError
from matattn.files import write_json
from matattn.workflows.screening.criteria import Criterion

ROWS = 1000  # pieces in a part: seconds of work, and what a kill loses at most
_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What a screening does; ``shard`` (from 0) of ``shards`` takes every so-many-th part.

    ``models`` are names or folders, ``sources`` paths of files.
    """

    folder: str
    models: tuple[str, ...]
    sources: tuple[str, ...]
    where: tuple[str, ...] = ()
    rows: int = ROWS
    shard: int = 0
    shards: int = 1

    @cached_property
    def criteria(self) -> list[Criterion]:
        """Return the criteria, parsed."""
        return [Criterion.parse(text) for text in self.where]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return what makes two screenings the same, as ``manifest.json`` holds it."""
        folders = [pretrained.find(model) for model in self.models]
        described = [
            {"model": model, "sha256": bundle.fingerprint(folder)}
            for model, folder in zip(self.models, folders, strict=True)
        ]
        sizes = [(name, Path(name).stat().st_size) for name in self.sources]
        return {
            "format": _FORMAT,
            "matattn": __version__,
            "models": described,
            "sources": {
                "first": self.sources[0],
                "files": len(sizes),
                "bytes": sum(size for _, size in sizes),
                "sha256_of_names_and_sizes": hashlib.sha256(repr(sizes).encode()).hexdigest(),
            },
            "where": list(self.where),
            "rows_in_a_part": self.rows,
            "shards": self.shards,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the manifest, which every part carries."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def without_sources(self) -> Plan:
        """Return what workers are sent with each part: the sources may be a million names."""
        light = replace(self, sources=())
        light.__dict__["manifest"] = self.manifest
        return light

    @property
    def sums(self) -> tuple[str, ...]:
        """Return the fingerprints of the models' bundles."""
        return tuple(model["sha256"] for model in self.manifest["models"])

    def part(self, number: int) -> Path:
        """Return the file of a part."""
        return Path(self.folder) / "parts" / f"part-{number:07d}.parquet"

    def finished(self, shard: int) -> Path:
        """Return the file that says how many parts a finished shard found in the sources."""
        return Path(self.folder) / f"shard-{shard + 1}-of-{self.shards}.json"

    def claim(self) -> FileLock:
        """Write the manifest, or compare it with that of the folder; return the shard's lock.

        Raises ConfigError when the folder holds another screening, MatattnError when the same shard
        is being screened, and WriteError.
        """
        folder = Path(self.folder)
        path = folder / "manifest.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            visible = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
        except OSError as error:
            raise MatattnError(f"{folder}: cannot be used: {error.strerror}") from None
        if visible and path.name not in visible:
            raise ConfigError(f"{folder}: is not empty, and no screening; give another folder")
        with FileLock(folder / ".manifest.lock"):  # shards may begin together
            if path.exists():
                self._compare(path)
            else:
                write_json(path, self.manifest)
        lock = FileLock(folder / f".shard-{self.shard + 1}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise MatattnError(f"{folder}: another process screens this shard") from None
        return lock

    def _compare(self, path: Path) -> None:
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            keys = [key for key in self.manifest if written.get(key) != self.manifest[key]]
        except (ValueError, AttributeError, OSError):
            raise ConfigError(f"{path}: is damaged; give another folder") from None
        if keys:
            key = keys[0]
            raise ConfigError(
                f"{path.parent}: holds another screening: {key} was "
                f"{_short(written.get(key))}, and is {_short(self.manifest[key])}; "
                "give another folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def parse_shard(text: str) -> tuple[int, int]:
    """Return shard (from 0) and number of shards of ``i/n``; raises ConfigError."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
        shard, shards = (int(part) for part in parts)
        if 1 <= shard <= shards:
            return shard - 1, shards
    raise ConfigError(f"--shard {text}: expected i/n, as 1/8 to 8/8")


def parts_of(plan: Plan) -> Sequence[Path]:
    """Return the files of all finished parts, in order."""
    return sorted((Path(plan.folder) / "parts").glob("part-*.parquet"))
