"""``matattn similar``: the structures of a pool that are nearest to one, for the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Model

if TYPE_CHECKING:
    from matattn.workflows.structures.pool import Pool
    from matattn.workflows.structures.predict import Predictor

PoolFiles = Annotated[
    list[str],
    typer.Argument(
        help="Structures, as of `matattn predict`, or the features.npz that `matattn embed` wrote "
        "of them with the same model."
    ),
]


def similar(
    model: Model,
    query: Annotated[str, typer.Argument(help="A file of one structure or several.")],
    pool: Annotated[
        list[str] | None,
        typer.Argument(
            help="Structures, or features.npz of `matattn embed`; default: the rows "
            "that the model was trained on, with their labels."
        ),
    ] = None,
    number: Annotated[int, typer.Option("-n", help="Structures to find for each.", min=1)] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".csv, .json, .jsonl or .parquet")
    ] = None,
) -> None:
    """Find similar structures: matattn similar mp-formation-energy x.cif pool.jsonl.

    Without a pool, what the prediction rests on: the nearest training rows, with their labels.

    Near is what the network cannot tell apart well: the same distance as in ood_score, 0 for other
    cells of one crystal. The search is exact. For a large pool, make its features once: matattn
    embed MODEL pool.jsonl -o features.npz.
    """
    from matattn.errors import MatattnError

    try:
        rows = _similar(model, query, pool or [], number, output)
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if output is None:
        from matattn.tables import csv_text

        sys.stdout.write(csv_text(rows))


def _similar(
    model: str, query: str, inputs: list[str], number: int, output: Path | None
) -> list[dict[str, object]]:
    from matattn.tables import check_output, write_table

    if output is not None:
        check_output(output)
    predictor, pool = read_pool(model, inputs)
    from matattn.errors import StructureError
    from matattn.structures.files import entries

    asked = list(entries(Path(query)))
    answers = predictor.embed([e.structure for e in asked], [e.place for e in asked])
    import torch

    rows: list[dict[str, object]] = []
    for entry, answer in zip(asked, answers, strict=True):
        if answer["features"] is None:
            raise StructureError(answer["message"])
        distances, indices = pool.nearest(predictor, torch.from_numpy(answer["features"]), number)
        for rank, (distance, index) in enumerate(
            zip(distances[0].tolist(), indices[0].tolist(), strict=True), start=1
        ):
            row = {"query": entry.id, "rank": rank, "distance": distance}
            rows.append(row | dict(pool.names[index]))
    if output is not None:
        write_table(output, rows)
    return rows


def read_pool(model: str, inputs: list[str]) -> tuple[Predictor, Pool]:
    """Load a model of structures, and the pool that files hold, or its training rows.

    Raises MatattnError.
    """
    from matattn import bundle, pretrained
    from matattn.errors import BundleError
    from matattn.runtime import start_predicting

    folder = pretrained.find(model)
    if (kind := pretrained.kind(folder).name) != "structures":
        raise BundleError(f"{folder}: this model reads {kind}; only structures have features")
    start_predicting()
    from rich.console import Console
    from rich.progress import Progress

    from matattn.workflows.structures.pool import Pool
    from matattn.workflows.structures.predict import Predictor

    predictor = Predictor.load(folder)
    if predictor.network.level != "structure":
        raise BundleError(f"{folder}: has features per {predictor.network.level}, not structure")
    if not inputs:
        return predictor, Pool.of_training(predictor, folder)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("structures", total=None)
        pool = Pool.read(
            predictor, bundle.fingerprint(folder), inputs, lambda done: progress.advance(bar, done)
        )
    if pool.left_out:
        print(f"{pool.left_out} of the pool have no features (matattn predict says why)",
              file=sys.stderr)  # fmt: skip
    return predictor, pool
