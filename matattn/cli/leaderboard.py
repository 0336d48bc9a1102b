"""``matattn leaderboard``: runs on Matbench's folds beside every published submission."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders with the runs of one recipe: a sweep over folds.")
    ],
    published: Annotated[
        Path | None,
        typer.Option(help="CSV of published predictions; else that of MATATTN_DATA/matbench."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the table and the submission call it.")] = "ours",
    jarvis: Annotated[
        Path | None,
        typer.Option(help="A benchmark of the JARVIS leaderboard, as dft_3d_ehull.json.zip."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A folder: tables, plot, the leaderboard's files."),
    ] = None,
) -> None:
    """Score runs of data=matbench on the official folds: matattn leaderboard outputs.

    Prints the mean over folds of every submission, and how much better or worse ours is on the same
    rows, with paired bootstrap intervals; then errors by size and chemistry. Runs of several seeds
    are averaged before they are scored. With --jarvis, runs are scored on a benchmark of the JARVIS
    leaderboard instead.
    """
    from matattn.errors import MatattnError
    from matattn.files import write_json
    from matattn.tables import show, write_table
    from matattn.workflows import leaderboard as board
    from matattn.workflows.reporting import save_figure

    try:
        if jarvis is not None:
            _jarvis(runs, jarvis, name, output)
            return
        scores = board.read(runs, published, name)
        listed = board.rows(scores)
        groups = board.groups(scores)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            write_table(output / "leaderboard.csv", listed)
            if groups:
                write_table(output / "groups.csv", groups)
            save_figure(board.plot(scores), output / "leaderboard.png")
            if scores.official:
                board.write_submission(output / "results.json.gz", board.submission(scores))
                write_json(output / "info.json", board.information(scores))
        show(board.table(scores, listed))
        for line in board.remarks(scores):
            print(line)
        if groups:
            show(board.groups_table(scores, groups))
        if output is not None:
            print(f"written: {output}")
    except (MatattnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _jarvis(runs: list[Path], benchmark: Path, name: str, output: Path | None) -> None:
    """Score runs on a benchmark of JARVIS, and write a contribution."""
    from matattn.workflows import jarvis_leaderboard as board

    found = board.read(runs, benchmark)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        board.write(output, found, name)
    seeds = f", mean of {found.seeds} seeds" if found.seeds > 1 else ""
    print(f"{found.dataset} {found.target}: {len(found.table)} test rows{seeds}")
    print(f"MAE {found.mae:.4g}; mean absolute deviation of the labels "
          f"{found.mean_absolute_deviation:.4g}")  # fmt: skip
    if output is not None:
        print(f"written: {output}; complete metadata.json and run.sh before you submit")
