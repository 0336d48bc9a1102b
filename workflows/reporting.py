"""What all reports share: templates, figures and tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from matattn.files import atomic_path

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=lambda name: name is not None and ".html" in name,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)

_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s/:|]+/)+")  # at the beginning of an absolute path


def render(template: str, **values: Any) -> str:
    """Return the text of ``workflows/<template>.jinja`` filled with ``values``."""
    return _TEMPLATES.get_template(f"{template}.jinja").render(values).rstrip() + "\n"


def save_png(figure: Figure, file: Path | IO[bytes], dpi: int = 120) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=dpi, format="png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically."""
    with atomic_path(path) as partial:
        save_png(figure, partial)


def without_pictures(report: str) -> str:
    """Return a report as a model card: the pictures stay in the run folder."""
    return "\n".join(line for line in report.splitlines() if not line.startswith("![")) + "\n"


def without_folders(report: str) -> str:
    """Return a text whose absolute paths are names only: a model travels, its folders do not."""
    return _FOLDERS.sub("", report)


def loss_plot(
    runs: Sequence[Sequence[Mapping[str, float]]], labels: Mapping[str, str], ylabel: str = ""
) -> Figure:
    """Draw the columns ``labels`` (key: label) of every run's log over its epochs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for color, (key, label) in enumerate(labels.items()):
        for number, rows in enumerate(runs):
            if shown := [(row["epoch"], row[key]) for row in rows if key in row]:
                named = None if number else label
                axes.plot(*zip(*shown, strict=True), f"C{color}.-", markersize=3, label=named)
    axes.set(xlabel="epoch", ylabel=ylabel, yscale="log")
    axes.legend(fontsize=8)
    return figure


def problems(dataset: Any, where: str) -> list[str]:
    """Return a line on what was left out of any data set, and one on what is in doubt.

    Who trains must know when a table is not what it seems, before the training; ``where`` has all
    of it.
    """
    skipped, doubts = (getattr(dataset, name, ()) for name in ("skipped", "doubts"))
    items = getattr(dataset, "items", None)
    what = f"{len(skipped)} lines or files"
    if items is not None:
        what = f"{len(skipped)} of {len(skipped) + len(items)} rows"
    lines = [f"{what} left out; the first: {skipped[0]}; {where}"] if skipped else []
    if doubts:
        lines.append(f"{len(doubts)} doubts about rows; the first: {doubts[0]}; {where}")
    return lines


def text_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]
) -> Table:
    """Return a table for the terminal; columns named in ``left`` are aligned to the left."""
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*row)
    return table
