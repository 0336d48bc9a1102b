"""``matattn explain``: what a network's attention says of its predictions, and what it does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matattn.cli.arguments import Model

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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
            help="Explain test rows of a data set, whose labels then count: a name of `matattn "
            "train --help`, or a file as for data=table."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model of the same property, such as one trained with another seed; may "
            "be given several times. Three networks tell what is identified."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The property to explain; default: the first one.")
    ] = None,
    structures: Annotated[
        int, typer.Option(min=1, help="At most so many structures, the first ones.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of random orders and permutations.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of report.html and explanation.json.")
    ] = Path("explanation"),
) -> None:
    """Explain predictions by attention: matattn explain RUN/model *.cif -o FOLDER

    Writes a report to read in a browser and everything in it as JSON: attention against distance
    and species, heads and their pruning, whether removing what is attended to changes the
    prediction (beside random and nearest neighbours), whether methods agree, and whether the
    attention could be another.
    """
    from matattn import pretrained
    from matattn.cli.train import one_line
    from matattn.errors import ExplanationError, MatattnError
    from matattn.runtime import start_predicting

    try:
        folder = pretrained.find(model)
        kind = pretrained.kind(folder)
        if kind.name != "structures" and (data or compare):
            reads = f"{folder} reads {kind.name}"
            raise ExplanationError(f"--data and --compare need structures; {reads}")
        if not kind.takes_input and inputs:
            raise ExplanationError(f"{inputs[0]}: a wave function needs no input; leave it out")
        if kind.takes_input and data is None and not inputs:
            raise ExplanationError("give structures or meshes after the model, or use --data")
        start_predicting()
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
        from rich.console import Console
        from rich.progress import Progress
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    errors = Console(stderr=True)
    try:
        with Progress(console=errors, disable=not errors.is_terminal) as progress:
            request = _Request(
                folder, inputs or [], data, compare or [], target, structures, seed, output,
                progress, progress.add_task("measures", total=None),
            )  # fmt: skip
            lines = _EXPLAIN[kind.name](request)
    except (MatattnError, HydraException, OmegaConfBaseException, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    for sentence in lines:
        print(sentence)
    print(f"{output / 'report.html'}: open it in a browser", file=sys.stderr)


@dataclass(frozen=True)
class _Request:
    """What the command line says, and its progress bar."""

    folder: Path
    inputs: Sequence[str]
    data: str | None
    compare: Sequence[str]
    target: str | None
    most: int
    seed: int
    output: Path
    progress: Progress
    bar: TaskID

    def advance(self, steps: int) -> None:
        """Move the progress bar."""
        self.progress.advance(self.bar, steps)


def _structures(request: _Request) -> list[str]:
    """Explain predictions of crystals or molecules; return what to print."""
    from matattn.workflows.explain.report import write
    from matattn.workflows.structures import explain
    from matattn.workflows.structures.explain_sections import findings, sections
    from matattn.workflows.structures.predict import Predictor

    predictor = Predictor.load(request.folder)
    others = {name: Predictor.load(name) for name in request.compare}
    if request.data is None:
        items, where = _from_files(predictor, request.inputs, request.most), "files"
    else:
        items, where = _from_data(predictor, request.data, request.inputs, request.most)
    request.progress.update(request.bar, total=explain.steps(predictor))
    result, scenes = explain.structures(
        predictor, items, where, request.target, others, request.seed, request.advance
    )
    write(request.output, request.folder, result, sections(result), scenes)
    _show(result)
    return findings(result)


def _meshes(request: _Request) -> list[str]:
    """Explain the fields of mesh files; return what to print."""
    from matattn.errors import DataError, ExplanationError
    from matattn.meshes.files import read_mesh
    from matattn.workflows.explain.report import write
    from matattn.workflows.meshes import explain
    from matattn.workflows.meshes.predict import FieldPredictor, find_meshes

    predictor = FieldPredictor.load(request.folder)
    coordinates, names, known = (
        [field.name for field in predictor.fields(kind)]
        for kind in ("coordinates", "inputs", "targets")
    )
    samples = []
    for path in find_meshes(request.inputs)[: request.most]:
        try:
            try:
                samples.append(read_mesh(path, len(coordinates), names, known))
            except DataError:  # a mesh whose field is to be predicted
                samples.append(read_mesh(path, len(coordinates), names))
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not samples:
        raise ExplanationError("none of the meshes can be read")
    result = explain.explain(predictor, samples, request.target, request.seed, request.advance)
    parts = explain.sections(result)
    write(request.output, request.folder, result, parts)
    return parts[0].text.split("\n\n")


def _spins(request: _Request) -> list[str]:
    """Explain a wave function; return what to print."""
    from matattn.config import import_extra
    from matattn.workflows.explain.report import write

    prediction = import_extra("matattn.workflows.spins.predict")
    wave = import_extra("matattn.workflows.spins.explain")
    state = prediction.WaveFunction.load(request.folder)
    result = wave.explain(state, request.seed, request.advance)
    write(request.output, request.folder, result, wave.sections(result))
    rank = result["heads"]["spearman_importance_ablation"]
    return [f"{result['system']}: Spearman of head importance against ablation: {rank}"]


def _text(request: _Request) -> list[str]:
    from matattn.errors import ExplanationError

    raise ExplanationError(f"{request.folder}: models of text cannot be explained by attention")


_EXPLAIN = {"structures": _structures, "meshes": _meshes, "spins": _spins, "text": _text}


def _from_files(predictor: Predictor, inputs: Sequence[str], most: int) -> list[dict[str, Any]]:
    """What the network is given of the first ``most`` structures that it can read.

    The others are named on the standard error; raises ExplanationError when there is none.
    """
    from matattn.errors import ExplanationError, StructureError
    from matattn.structures.stream import StructureStream, find_sources

    items: list[dict[str, Any]] = []
    with StructureStream(find_sources(inputs)) as stream:
        for entry in stream:
            try:
                item, _ = predictor.read(entry.structure, entry.place)
                items.append({"id": entry.id, **item})
            except StructureError as error:
                print(f"left out: {error}", file=sys.stderr)
            if len(items) == most:
                break
    if not items:
        raise ExplanationError("none of the structures can be read")
    return items


def _from_data(
    predictor: Predictor, data: str, overrides: Sequence[str], most: int
) -> tuple[list[Any], str]:
    """The first ``most`` held-out rows of a data set with labels, and what they are called.

    Raises DataError and ConfigError as ``evaluation.load_data``, and ConfigError when no row is
    held out.
    """
    from matattn.errors import ConfigError
    from matattn.workflows.structures.evaluate import load_data

    dataset = load_data(data, predictor, overrides)
    for split in ("test", "val"):
        if len(rows := dataset.rows(split)):
            items = [dataset.items[row] for row in rows[:most]]
            return items, f"{split} rows of {dataset.name}"
    raise ConfigError(f"{dataset.name}: no test or validation rows to explain")


def _show(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from matattn.workflows.structures.explain_sections import summary_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    unit = result["unit"]
    table = Table(title=f"Mean |change| of the prediction / {unit}", box=SIMPLE_HEAD)
    table.add_column("order of the edges")
    table.add_column("first removed (higher: more faithful)", justify="right")
    table.add_column("first kept (lower: more faithful)", justify="right")
    for row in summary_rows(result):
        table.add_row(*row)
    console.print(table)
