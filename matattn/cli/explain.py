"""``matattn explain``: what a network's attention tells about its predictions, and what not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from matattn.cli.arguments import Model

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from matattn.kinds import Kind
    from matattn.meshes.fields import MeshSample
    from matattn.workflows.meshes.predict import FieldPredictor
    from matattn.workflows.structures.predict import Predictor


def explain(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders and globs of structures, as of `matattn predict`; with --data, "
            "keys of the data as of `matattn evaluate`: data.max_sites=12."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Explain the test rows of a data set, with their labels: a name of `matattn "
            "train --help`, or a file as for data=table."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model of the same property, such as one trained with another seed; may "
            "be given several times. Three networks show which constants are identified."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The property to explain; default: the first one.")
    ] = None,
    structures: Annotated[
        int, typer.Option(min=1, help="Explain at most so many structures, the first ones.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of random orders and permutations.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html and explanation.json.")
    ] = Path("explanation"),
) -> None:
    """Explain predictions by attention.

    matattn explain RUN/model *.cif -o FOLDER

    Writes a report to read in a browser and everything in it as JSON: attention against distance
    and species, heads and their pruning, whether removing what is attended to changes the
    prediction (beside random and nearest neighbours), whether methods agree, and whether the
    attention could be another.
    """
    from matattn import pretrained
    from matattn.composition import one_line
    from matattn.errors import MatattnError
    from matattn.runtime import start_predicting

    inputs, compare = inputs or [], compare or []
    try:  # before the slow imports
        folder = pretrained.find(model)
        kind = pretrained.kind(folder)
        _check(folder, kind, inputs, data, compare)
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    start_predicting()
    from rich.console import Console
    from rich.progress import Progress

    from matattn.tables import show

    errors = Console(stderr=True)
    try:
        with Progress(console=errors, disable=not errors.is_terminal) as progress:
            bar = progress.add_task("measures", total=None)
            request = _Request(folder, inputs, data, compare, target, structures, seed, output,
                               progress, bar)  # fmt: skip
            answer = _EXPLAIN[kind.name](request)
    except (MatattnError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    if answer.table is not None:
        show(answer.table)
    for sentence in answer.sentences:
        print(sentence)
    print(f"{output / 'report.html'}: open it in a browser", file=sys.stderr)


def _check(
    folder: Path, kind: Kind, inputs: Sequence[str], data: str | None, compare: Sequence[str]
) -> None:
    """Raise ExplanationError for arguments that do not fit the kind of the model."""
    from matattn.errors import ExplanationError

    if kind.name != "structures" and (data or compare):
        reads = f"{folder} reads {kind.name}"
        raise ExplanationError(f"--data and --compare need structures; {reads}")
    if not kind.takes_input and inputs:
        raise ExplanationError(f"{inputs[0]}: a wave function needs no input; leave it out")
    if kind.takes_input and data is None and not inputs:
        raise ExplanationError("give structures or meshes after the model, or use --data")


@dataclass(frozen=True)
class _Request:
    """The arguments of the command line, and the progress bar."""

    folder: Path
    inputs: Sequence[str]
    data: str | None
    compare: Sequence[str]
    target: str | None
    most: int  # structures or meshes
    seed: int
    output: Path
    progress: Progress
    bar: TaskID

    def expect(self, steps: int) -> None:
        """Give the progress bar its length."""
        self.progress.update(self.bar, total=steps)

    def advance(self, steps: int) -> None:
        """Move the progress bar."""
        self.progress.advance(self.bar, steps)


class _Answer(NamedTuple):
    """What the command prints."""

    sentences: list[str]
    table: Table | None = None


def _explain_structures(request: _Request) -> _Answer:
    """Explain predictions of crystals or molecules."""
    from matattn.workflows.explain.report import write
    from matattn.workflows.structures import explain
    from matattn.workflows.structures.explain_sections import findings, sections
    from matattn.workflows.structures.predict import Predictor

    predictor = Predictor.load(request.folder)
    others = {name: Predictor.load(name) for name in request.compare}
    if request.data is None:
        items, source = _read(predictor, request)
    else:
        items, source = _held_out(predictor, request.data, request)
    request.expect(explain.steps(predictor))
    result, scenes = explain.structures(
        predictor, items, source, request.target, others, request.seed, request.advance
    )
    write(request.output, request.folder, result, sections(result), scenes)
    return _Answer(findings(result), _removal_table(result))


def _read(predictor: Predictor, request: _Request) -> tuple[list[dict[str, Any]], str]:
    """Return the first structures of the files that the network can read, and their source.

    The others are named on the standard error. Raises ExplanationError when there is none.
    """
    from matattn.errors import ExplanationError, StructureError
    from matattn.structures.stream import StructureStream, find_sources

    items: list[dict[str, Any]] = []
    with StructureStream(find_sources(request.inputs)) as stream:
        for entry in stream:
            try:
                readable = predictor.read(entry.structure, entry.place)
                items.append({"id": entry.id, **readable.item})
                for remark in readable.remarks + readable.doubts:
                    print(f"{entry.place}: {remark}", file=sys.stderr)
            except StructureError as error:
                print(f"left out: {error}", file=sys.stderr)
            if len(items) == request.most:
                break
    if not items:
        raise ExplanationError("none of the structures can be read")
    return items, "files"


def _held_out(predictor: Predictor, data: str, request: _Request) -> tuple[list[Any], str]:
    """Return the first test (or validation) rows of a data set with labels, and their source.

    Raises DataError and ConfigError like ``load_data``, and ConfigError when no row is held out.
    """
    from matattn.errors import ConfigError
    from matattn.workflows.structures.evaluate import load_data

    dataset = load_data(data, predictor, request.inputs)
    for split in ("test", "val"):
        if len(rows := dataset.rows(split)):
            items = [dataset.items[row] for row in rows[: request.most]]
            return items, f"{split} rows of {dataset.name}"
    raise ConfigError(f"{dataset.name}: no test or validation rows to explain")


def _removal_table(result: dict[str, Any]) -> Table:
    """Return how much the predictions change when edges are removed, by their order."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from matattn.workflows.structures.explain_sections import summary_rows

    title = f"Mean |change| of the prediction / {result['unit']}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("order of the edges")
    table.add_column("first removed (higher: more faithful)", justify="right")
    table.add_column("first kept (lower: more faithful)", justify="right")
    for row in summary_rows(result):
        table.add_row(*row)
    return table


def _explain_meshes(request: _Request) -> _Answer:
    """Explain the fields of mesh files."""
    from matattn.workflows.explain.report import write
    from matattn.workflows.meshes import explain
    from matattn.workflows.meshes.predict import FieldPredictor

    predictor = FieldPredictor.load(request.folder)
    samples = _read_meshes(predictor, request)
    result = explain.explain(predictor, samples, request.target, request.seed, request.advance)
    parts = explain.sections(result)
    write(request.output, request.folder, result, parts)
    return _Answer(parts[0].text.split("\n\n"))


def _read_meshes(predictor: FieldPredictor, request: _Request) -> list[MeshSample]:
    """Return the first meshes, with their labels where the files have them.

    Meshes that cannot be read are named on the standard error. Raises ExplanationError when none
    is left, and DataError when there is no mesh file.
    """
    from matattn.errors import DataError, ExplanationError
    from matattn.meshes.files import read_mesh
    from matattn.workflows.meshes.predict import find_meshes

    coordinates, inputs, targets = (
        [field.name for field in predictor.fields(role)]
        for role in ("coordinates", "inputs", "targets")
    )
    samples = []
    for path in find_meshes(request.inputs)[: request.most]:
        try:
            try:
                samples.append(read_mesh(path, len(coordinates), inputs, targets))
            except DataError:  # a mesh without labels
                samples.append(read_mesh(path, len(coordinates), inputs))
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not samples:
        raise ExplanationError("none of the meshes can be read")
    return samples


def _explain_spins(request: _Request) -> _Answer:
    """Explain a wave function."""
    from matattn.extras import import_extra
    from matattn.workflows.explain.report import write

    prediction = import_extra("matattn.workflows.spins.predict")
    wave = import_extra("matattn.workflows.spins.explain")
    state = prediction.WaveFunction.load(request.folder)
    result = wave.explain(state, request.seed, request.advance)
    write(request.output, request.folder, result, wave.sections(result))
    rank = result["heads"]["spearman_importance_ablation"]
    text = f"{result['system']}: Spearman of head importance against ablation: {rank}"
    return _Answer([text])


def _refuse_text(request: _Request) -> _Answer:
    """Raise ExplanationError."""
    from matattn.errors import ExplanationError

    raise ExplanationError(f"{request.folder}: models of text cannot be explained by attention")


def _refuse_potentials(request: _Request) -> _Answer:
    """Raise ExplanationError."""
    from matattn.errors import ExplanationError

    raise ExplanationError(f"{request.folder}: is a potential, and explanations are of properties")


_EXPLAIN = {
    "structures": _explain_structures,
    "potentials": _refuse_potentials,
    "meshes": _explain_meshes,
    "spins": _explain_spins,
    "text": _refuse_text,
}
