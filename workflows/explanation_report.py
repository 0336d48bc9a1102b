"""The report of an explanation: one HTML file that needs nothing else, to read in a browser."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pymatgen.core import Element

from matattn.attention import AttentionRecord
from matattn.files import write_text
from matattn.neighbors import SELF

TableRows = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows
MOST_EDGES = 400  # of a structure, drawn and stored: the strongest in any head
_COLORS = {
    "H": "#f5f5f5", "C": "#909090", "N": "#4a62e8", "O": "#e8301c", "F": "#8fdc50",
    "S": "#f0d733", "Cl": "#2fdc2f", "Na": "#a05cec", "Mg": "#7ae000", "Si": "#e6c39d",
    "P": "#f08000", "Ti": "#b5b8bd", "Fe": "#d96433", "Ga": "#b98b8b", "As": "#b47fdb",
    "Sr": "#00dc00",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A part of the report: paragraphs, figures with captions, tables."""

    title: str
    text: str
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[TableRows] = ()


def write_report(
    path: Path, title: str, sections: Sequence[Section], scenes: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the report; ``scenes`` (``scene``) are structures to turn, after the first section."""
    parts = [_html(section) for section in sections]
    if scenes:
        parts.insert(1, _VIEWER)
    # No text of a structure can end the script element that holds it.
    data = json.dumps(list(scenes), separators=(",", ":")).replace("<", "\\u003c")
    page = (files("matattn.workflows") / "explanation_report.html").read_text(encoding="utf-8")
    content = {"@TITLE@": html.escape(title), "@BODY@": "\n".join(parts), "@SCENES@": data}
    for place, text in content.items():
        page = page.replace(place, text)
    write_text(path, page)


def _html(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.text.split("\n\n") if text]
    for figure, caption in section.figures:
        FigureCanvasAgg(figure)
        stored = io.BytesIO()
        figure.savefig(stored, dpi=110, format="png")
        image = base64.b64encode(stored.getvalue()).decode()
        caption = html.escape(caption)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{image}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    for header, rows in section.tables:
        lines = [_row(header, "th"), *(_row(row, "td") for row in rows)]
        parts.append(f"<table>{''.join(lines)}</table>")
    return "\n".join(parts)


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_VIEWER = """<h2>Attention in the structures</h2>
<p>Drag to turn, scroll to zoom. A line goes from an atom to a neighbour that it attends to; its
width and redness grow with the weight. Pale atoms are periodic images.</p>
<div class="controls">
<label>structure <select id="structure"></select></label>
<label><select id="layer"></select></label>
<label><select id="head"></select></label>
<label>weight at least <input id="least" type="range" min="0" max="0.5" step="0.005" value="0.02">
<span id="leastvalue"></span></label>
</div>
<canvas id="viewer"></canvas>
<p id="described"></p>"""


def strongest(record: AttentionRecord) -> np.ndarray:
    """The edges of a record that are stored: ``MOST_EDGES`` between different places, by the
    largest weight in any layer and head."""
    weight = record.weight.max((0, 1))
    weight = np.where(record.length >= SELF, weight, -1)
    chosen = np.argsort(-weight, kind="stable")[:MOST_EDGES]
    return np.sort(chosen[weight[chosen] > 0])


def scene(name: str, described: str, item: Mapping[str, Any], record: AttentionRecord) -> Any:
    """What the viewer draws of a structure (keys z, pos, cell): plain values."""
    pos, cell = item["pos"].double().numpy(), item["cell"][0].double().numpy()
    chosen = strongest(record)
    edges = []
    for edge in chosen:
        target, source = int(record.target[edge]), int(record.source[edge])
        shift = record.image[edge] if record.image is not None else np.zeros(3)
        at = pos[source] + shift @ cell
        edges.append(
            {"target": target, "source": source, "at": _rounded(at), "image": bool(shift.any())}
        )
    corners, frame = [], []
    if cell.any():
        steps = np.array(list(np.ndindex(2, 2, 2)))
        corners = [_rounded(corner) for corner in steps @ cell]
        frame = [
            [int(a), int(b)] for a in range(8) for b in range(a + 1, 8)
            if np.abs(steps[a] - steps[b]).sum() == 1
        ]  # fmt: skip
    return {
        "name": name,
        "described": described,
        "atoms": [_atom(z, at) for z, at in zip(item["z"].tolist(), pos, strict=True)],
        "edges": edges,
        "corners": corners,
        "frame": frame,
        "weight": np.round(record.weight[..., chosen], 4).tolist(),
    }


def _atom(z: int, at: np.ndarray) -> dict[str, Any]:
    element = Element.from_Z(z)
    color = _COLORS.get(element.symbol, f"hsl({z * 137 % 360},55%,60%)")
    radius = 0.35 * float(element.atomic_radius or 1.5)
    return {"symbol": element.symbol, "at": _rounded(at), "color": color, "radius": radius}


def _rounded(point: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in point]
