"""``matattn evaluate``: errors of a model on labelled crystals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from matattn.cli.arguments import Model


def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(help="A data set of `matattn train --help`, or a file as for data=table."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Keys of the data as in training: data.max_sites=12, data.split=..."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write everything to a JSON file.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Compare predictions with labels: matattn evaluate mp-formation-energy mp2018_subset.

    Prints errors beside those of baselines: by split, for formulas that are not in the training
    rows of the data, by size of the cell, and by chemistry.
    """
    from matattn import pretrained
    from matattn.composition import one_line
    from matattn.errors import MatattnError
    from matattn.runtime import start_predicting

    try:
        folder = pretrained.find(model)
    except MatattnError as error:  # before the slow imports
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    start_predicting()
    from rich.console import Console
    from rich.progress import Progress

    from matattn.files import write_json
    from matattn.kernels.dispatch import BackendError
    from matattn.tables import show
    from matattn.workflows.reporting import problems
    from matattn.workflows.structures import evaluate as evaluation
    from matattn.workflows.structures.predict import Predictor
    from matattn.workflows.structures.report import results_table

    errors = Console(stderr=True)
    try:
        predictor = Predictor.load(folder, device)
        dataset = evaluation.load_data(data, predictor, overrides or [])
        for line in problems(dataset, "ten of them stand below, all in the file of -o"):
            print(line, file=sys.stderr)
        with Progress(console=errors, disable=not errors.is_terminal) as progress:
            bar = progress.add_task("crystals", total=len(dataset.items))
            result = evaluation.evaluate(
                predictor, dataset, lambda crystals: progress.advance(bar, crystals)
            )
        if output is not None:
            write_json(output, {"model": model, **result})
    except (MatattnError, BackendError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    show(results_table(result["splits"]))
    show(evaluation.groups_table(result["held_out"]))
    console = Console()
    for message in dataset.skipped[:10]:
        console.print(f"left out: {message}", soft_wrap=True, markup=False)
    for message in dataset.doubts[:10]:
        console.print(f"in doubt: {message}", soft_wrap=True, markup=False)
    for name, message in list(result["failed"].items())[:10]:
        console.print(f"not predicted: {name}: {message}", soft_wrap=True, markup=False)
    for remark in [*result["remarks"], f"Comparability: {dataset.note}"]:
        console.print(remark, soft_wrap=True, markup=False)
