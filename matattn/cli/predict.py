"""``matattn predict``: structures in, one table row per structure out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from matattn.errors import StructureError


def predict(
    model: Annotated[
        str,
        typer.Argument(help="A name of `matattn models`, or the model/ folder of a finished run."),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(help="CIF, POSCAR, extended-XYZ or pymatgen-JSON files, folders or globs."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV file to write; default: to the terminal."),
    ] = None,
) -> None:
    """Predict properties of crystals: matattn predict outputs/.../model *.cif

    One CSV row per structure with values and units. A file that cannot be used gives a row with the
    error in the columns status and message; the exit status is 1 only if every row failed.
    """
    from matattn import pretrained
    from matattn.errors import BundleError, MatattnError

    try:
        folder = pretrained.find(model)
    except BundleError as error:  # before the slow imports
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None

    from rich.console import Console
    from rich.progress import Progress

    from matattn.kernels.dispatch import BackendError
    from matattn.runtime import tune_malloc
    from matattn.workflows.prediction import Predictor

    tune_malloc()
    console = Console(file=sys.stderr)
    try:
        if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
            raise MatattnError(f"{output}: cannot be written (a folder, or in one that is missing)")
        predictor = Predictor.load(folder)
        entries = [entry for path in _find_files(inputs) for entry in _read(path)]
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("crystals", total=len(entries))
            rows = predictor.predict(
                [structure for _, _, structure in entries],
                places=[str(path) for _, path, _ in entries],
                advance=lambda crystals: progress.advance(bar, crystals),
            )
    except (MatattnError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    places = [{"id": name, "path": str(path)} for name, path, _ in entries]
    table = [place | row for place, row in zip(places, rows, strict=True)]
    try:
        _write(table, output)
    except OSError as error:
        _write(table, None)  # what was computed is not lost
        print(f"error: {output}: cannot be written: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if all(row["status"] != "ok" for row in table):
        raise typer.Exit(1)


def _find_files(inputs: list[str]) -> list[Path]:
    """Files named by paths, folders (all structure files in them) and globs, in order.

    What names no file stays in the list, and becomes a row with an error.
    """
    from glob import glob

    from matattn.structure import is_structure_file

    files: list[Path] = []
    for given in inputs:
        is_glob = any(mark in given for mark in "*?[") and not Path(given).exists()
        matches = sorted(glob(given, recursive=True)) if is_glob else []
        for path in map(Path, matches or [given or "(no name)"]):
            inside = sorted(path.iterdir()) if path.is_dir() else []
            files += [entry for entry in inside if is_structure_file(entry)] or [path]
    return files


def _read(path: Path) -> list[tuple[str, Path, Structure | StructureError]]:
    """(id, path, structure or the error in its place) of everything in a file."""
    from matattn.errors import StructureError
    from matattn.structure import read

    try:
        structures = read(path)
    except StructureError as error:
        return [(path.stem, path, error)]
    if len(structures) == 1:
        return [(path.stem, path, structures[0])]
    return [(f"{path.stem}:{n}", path, s) for n, s in enumerate(structures, start=1)]


def _write(table: list[dict[str, Any]], output: Path | None) -> None:
    import csv
    import io

    from matattn.files import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    if output is None:
        sys.stdout.write(text.getvalue())
    else:
        write_text(output, text.getvalue())
