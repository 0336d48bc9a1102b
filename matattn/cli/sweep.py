"""``matattn sweep report``: what became of the runs of a sweep."""

from __future__ import annotations

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
    """One row for each run below FOLDER: finished, running, stopped or failed, and its result.

    Columns show the settings in which the runs differ. Runs of one configuration but different
    seeds are summed up below: mean and standard deviation.
    """
    import sys

    from rich.console import Console

    from matattn.errors import MatattnError
    from matattn.workflows import sweeps

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    try:
        runs = sweeps.find_runs(folder)
        for table in sweeps.tables(runs):
            console.print(table)
        if output is not None:
            sweeps.write(output, runs)
            console.print(f"{output}, {output.with_suffix('.png')}", soft_wrap=True)
    except (MatattnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
