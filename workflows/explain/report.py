"""The report of an explanation: one HTML file that needs nothing else, to read in a browser."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from matattn import bundle
from matattn.files import write_json, write_text
from matattn.workflows.reporting import render, save_png

FORMAT = 1
TableRows = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows


@dataclass(frozen=True)
class Section:
    """A part of the report: paragraphs, figures with captions, tables."""

    title: str
    text: str
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[TableRows] = ()

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield every figure as a PNG in base64, with its caption."""
        for figure, caption in self.figures:
            stored = io.BytesIO()
            save_png(figure, stored, dpi=110)
            yield base64.b64encode(stored.getvalue()).decode(), caption


def write_report(
    path: Path, title: str, sections: Sequence[Section], scenes: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the report; ``scenes`` are structures that a reader can turn, after section one."""
    # No text of a structure can end the script element that holds it.
    data = json.dumps(list(scenes), separators=(",", ":")).replace("<", "\\u003c")
    page = render(
        "explain/report.html",
        title=title,
        sections=sections,
        scenes=Markup(data),
        has_scenes=bool(scenes),
    )
    write_text(path, page)


def write(
    folder: Path,
    model: Path,
    result: Mapping[str, Any],
    sections: Sequence[Section],
    scenes: Sequence[Any] = (),
) -> None:
    """Write ``report.html`` and ``explanation.json`` about the bundle in the folder ``model``."""
    origin = {"format": FORMAT, "model": str(model), "model_hash": bundle.fingerprint(model)}
    title = f"How {result['network']} predicts {result['target'].replace('_', ' ')}"
    write_report(folder / "report.html", title, sections, scenes)
    # Last: its presence says that all is there.
    write_json(folder / "explanation.json", origin | dict(result))
