"""``matattn sweep report``: the state and the result of every run of a sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sweep = typer.Typer(help="Look at the runs of a sweep.", no_args_is_help=True)


@sweep.callback()
def _commands() -> None:
    pass


@sweep.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it, such as outputs.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A CSV file; a plot comes beside it.")
    ] = None,
) -> None:
    """Show each run below FOLDER: finished, running, stopped or failed, and its result.

    Columns show the settings in which the runs differ. Runs that differ only in their seed are
    summed up below: mean and standard deviation.
    """
    from matattn.errors import MatattnError
    from matattn.tables import show
    from matattn.workflows import sweeps

    try:
        runs = sweeps.find_runs(folder)
        for table in sweeps.tables(runs):
            show(table)
        if output is not None:
            sweeps.write(output, runs)
            print(f"{output}, {output.with_suffix('.png')}")
    except (MatattnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
