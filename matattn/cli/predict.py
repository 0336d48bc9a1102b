"""``matattn predict``: structures in, one table row per structure out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Model

if TYPE_CHECKING:
    from matattn.tables import Row


def predict(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files (CIF, POSCAR, extended XYZ, pymatgen JSON, JSON lines, ASE .db and .traj), "
            "folders, globs, mp-ids (with MP_API_KEY), or - for a list of them or JSON lines on "
            "the standard input. For a model of fields: meshes (VTU, VTK, .npz, ...) and folders. "
            "For a wave function: nothing."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=".csv, .json, .jsonl or .parquet; default: CSV to the terminal. For a model of "
            "fields: a folder for VTU files and predictions.csv.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    kinds: Annotated[
        str,
        typer.Option(
            help="Intervals for known kinds of structures, or new ones: auto, known, new."
        ),
    ] = "auto",
    orderings: Annotated[
        int,
        typer.Option(
            min=0,
            help="Ordered crystals that stand for one with partial occupancies: the value is "
            "their mean. 0: it is refused.",
        ),
    ] = 0,
) -> None:
    """Predict properties of crystals.

    matattn predict mp-formation-energy *.cif

    One row per structure with values and units. A structure that cannot be used gives a row with
    the error in the columns status and message; the exit status is 1 only if every row failed.
    Ctrl-C and SIGTERM write the rows that are finished.

    Fields on meshes: matattn predict RUN/model *.vtu -o FOLDER

    Observables of a wave function, with errors from fresh samples: matattn predict RUN/model
    """
    from matattn import pretrained
    from matattn.errors import MatattnError

    inputs = inputs or []
    rows: list[Row] = []
    fields = output

    def work() -> str:
        nonlocal output
        folder = pretrained.find(model)
        kind = pretrained.kind(folder)
        if kind.takes_input and not inputs:
            raise MatattnError("give structures or meshes after the model: files or folders")
        if kind.name == "meshes":  # fields go into a folder, with the table beside them
            output = output and output / "predictions.csv"
        if kinds != "auto" or orderings:
            if kind.name != "structures":
                asked = f"--kinds {kinds}" if kinds != "auto" else f"--orderings {orderings}"
                raise MatattnError(f"{asked}: only for models of structures, not of {kind.name}")
            return _screen(folder, inputs, fields, device, rows, kinds, orderings)
        return _PREDICT[kind.name](folder, inputs, fields, device, rows)

    try:
        message, status = outcome(work, rows)
    finally:
        written = _write(rows, output)  # whatever ended the run, finished rows are kept
    print(message, file=sys.stderr)
    if not written or status:
        raise typer.Exit(status or 2)


def outcome(work: Callable[[], str], rows: Sequence[Row]) -> tuple[str, int]:
    """Return what to say of ``work``, which fills ``rows``, and the exit status.

    Ctrl-C and SIGTERM end it, and what is a user's mistake.
    """
    from matattn.errors import MatattnError

    try:
        with until_terminated():
            return work(), int(all(row["status"] != "ok" for row in rows))
    except KeyboardInterrupt as stopped:
        (number,) = stopped.args or (signal.SIGINT,)
        return f"interrupted; {len(rows)} finished rows are written", 128 + number
    except MatattnError as error:
        return f"error: {error}", 2


@contextmanager
def until_terminated() -> Iterator[None]:
    """Run the block with SIGTERM as Ctrl-C: both raise KeyboardInterrupt, with the number."""
    earlier = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _stop(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _observe(
    folder: Path, inputs: list[str], output: Path | None, device: str, rows: list[Row]
) -> str:
    """Fill ``rows`` with the observables of a wave function; return a line about the samples."""
    from matattn.errors import DataError

    if inputs:
        raise DataError(f"{inputs[0]}: a wave function needs no input; leave it out")
    from matattn.extras import import_extra

    prediction = import_extra("matattn.workflows.spins.predict")
    return str(prediction.observe_folder(folder, rows))


def _predict_fields(
    folder: Path, inputs: list[str], output: Path | None, device: str, rows: list[Row]
) -> str:
    """Fill ``rows`` and the folder ``output`` from meshes; return a summary."""
    from matattn.errors import DataError
    from matattn.runtime import start_predicting

    if output is None:
        raise DataError("this model predicts fields: give a folder for its VTU files, -o FOLDER")
    start_predicting()
    from rich.console import Console
    from rich.progress import Progress

    from matattn.workflows.meshes.predict import FieldPredictor, find_meshes, predict_files

    paths = find_meshes(inputs)
    predictor = FieldPredictor.load(folder, device)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("meshes", total=len(paths))
        return predict_files(predictor, paths, output, rows, lambda: progress.advance(bar))


def _screen(
    folder: Path, inputs: list[str], output: Path | None, device: str, rows: list[Row],
    kinds: str = "auto", orderings: int = 0,
) -> str:  # fmt: skip
    """Fill ``rows`` from structures; return a summary."""
    from matattn.tables import check_output

    if output is not None:
        check_output(output)
    return screened(folder, inputs, device, rows, kinds=kinds, orderings=orderings)


def screened(
    folder: Path, inputs: list[str], device: str, rows: list[Row], embed: bool = False,
    kinds: str = "auto", orderings: int = 0,
) -> str:  # fmt: skip
    """Fill ``rows`` with predictions or features of structures; return a summary.

    What may fail comes first, and the slow imports after it.
    """
    from matattn.errors import MatattnError
    from matattn.runtime import start_predicting

    start_predicting()
    from matattn.structures.stream import StructureStream, find_sources

    sources = find_sources(inputs)
    if not sources:
        raise MatattnError("the standard input is empty: it names no file and holds no structure")
    with StructureStream(sources) as stream:  # its processes read while PyTorch is loaded
        from rich.console import Console
        from rich.progress import Progress

        from matattn import pretrained
        from matattn.kernels.dispatch import BackendError
        from matattn.workflows.structures.disordered import takes_orderings
        from matattn.workflows.structures.screen import Screening

        predictor = pretrained.kind(folder).load(folder, device)
        if kinds != "auto":
            predictor = predictor.for_kinds(kinds)
        if orderings and not takes_orderings(predictor):
            raise MatattnError(
                f"--orderings {orderings}: only for properties of whole crystals that do not grow "
                "with the cell"
            )
        screening = Screening(predictor, stream, rows, embed, orderings)
        console = Console(stderr=True)
        try:
            with Progress(console=console, disable=not console.is_terminal) as progress:
                bar = progress.add_task("structures", total=stream.total)
                screening.run(lambda crystals: progress.advance(bar, crystals))
            return screening.summary()
        except BackendError as error:
            raise MatattnError(str(error)) from error


def _refuse_text(
    folder: Path, inputs: list[str], output: Path | None, device: str, rows: list[Row]
) -> str:
    """Raise BundleError."""
    from matattn.errors import BundleError

    raise BundleError(f"{folder}: this model reads text: matattn tokenize {folder} TEXT")


_PREDICT = {
    "structures": _screen,
    "potentials": _screen,
    "meshes": _predict_fields,
    "spins": _observe,
    "text": _refuse_text,
}


def _write(rows: list[Row], output: Path | None) -> bool:
    """Write the table, to the terminal where the file fails; return whether all is well."""
    from matattn.errors import WriteError
    from matattn.tables import csv_text, write_table

    try:
        if output is not None and rows:
            write_table(output, rows)
            return True
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
    try:
        sys.stdout.write(csv_text(rows))
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough
        raise
    except OSError as error:
        print(f"error: standard output: cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return False
    return output is None or not rows
