"""Predict properties of many structures, or their features, one chunk after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from typing import Any

import torch

from matattn.kernels.dispatch import choose
from matattn.runtime import peak_memory
from matattn.structures.ensemble import first_member
from matattn.structures.stream import StructureStream
from matattn.structures.structure import ORDER_IT
from matattn.workflows.structures.disordered import takes_orderings, with_orderings
from matattn.workflows.structures.predict import Predictor

CHUNK = 500  # structures in memory at a time; enough to fill batches with crystals of one size


@dataclass
class Screening:
    """A row for every entry of a stream; when interrupted, ``rows`` hold what is finished.

    ``embed`` asks for features (``Predictor.embed``) in place of predictions. With ``orderings``,
    crystals with partial occupancies are means over so many ordered ones.
    """

    predictor: Predictor
    stream: StructureStream
    rows: list[dict[str, Any]] = field(default_factory=list)
    embed: bool = False
    orderings: int = 0
    seconds: float = 0.0  # of the whole run
    network_seconds: float = 0.0  # of them, those of predictions

    def run(self, advance: Callable[[int], Any] = lambda structures: None) -> None:
        """Add a row per entry of the stream: id, path, and the row of the ``Predictor``.

        ``advance`` is called with the number of structures done after each batch.
        """
        begin = time.perf_counter()
        entries = iter(self.stream)
        while chunk := list(islice(entries, CHUNK)):
            before = time.perf_counter()
            answer = self.predictor.embed if self.embed else self.predictor.predict
            answers = answer(
                [entry.structure for entry in chunk], [entry.place for entry in chunk], advance
            )
            if self.orderings:
                answers = [
                    with_orderings(self.predictor, entry, row, self.orderings)
                    for entry, row in zip(chunk, answers, strict=True)
                ]
            else:
                answers = [self._advised(row) for row in answers]
            self.network_seconds += time.perf_counter() - before
            for entry, row in zip(chunk, answers, strict=True):
                self.rows.append({"id": entry.id, "path": entry.path} | row)
            self.seconds = time.perf_counter() - begin

    def _advised(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row whose message tells what else can be done about partial occupancies."""
        if ORDER_IT not in row["message"] or self.embed or not takes_orderings(self.predictor):
            return row
        return row | {"message": row["message"] + ", or give --orderings 20"}

    def summary(self) -> str:
        """Return one line: how many structures, how fast, and on what."""
        count, done = len(self.rows), sum(row["status"] == "ok" for row in self.rows)
        readers = self.stream.processes
        reading = max(self.stream.seconds, 1e-6) / max(readers, 1)
        where = f" in {readers} process{'es' * (readers > 1)}" if readers else ""
        return (
            f"{done} of {count} structures in {self.seconds:.1f} s ({count / self.seconds:.0f}/s): "
            f"parsing {count / reading:.0f}/s{where}, network {count / self.network_seconds:.0f}/s;"
            f" {self._backends()}on {self.predictor.device}, {torch.get_num_threads()} threads; "
            f"peak memory {peak_memory() / 2**30:.2f} GB"
        )

    def _backends(self) -> str:
        """Return "backend NAME " for each kernel operator that the network calls."""
        names = []
        for operator in first_member(self.predictor.network).operators:
            table = import_module(f"matattn.kernels.{operator}").BACKENDS
            names.append(choose(operator, table, "auto", self.predictor.device, torch.float32))
        return "".join(f"backend {name} " for name in names)
