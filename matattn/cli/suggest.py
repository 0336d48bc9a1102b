"""``matattn suggest``: which structures of a pool to label next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from matattn.cli.arguments import Model
from matattn.cli.similar import PoolFiles


def suggest(
    model: Model,
    pool: PoolFiles,
    maximize: Annotated[str | None, typer.Option(help="The target that should be large.")] = None,
    minimize: Annotated[str | None, typer.Option(help="The target that should be small.")] = None,
    learn: Annotated[
        str | None, typer.Option(help="The target that the model should know better.")
    ] = None,
    best: Annotated[
        float | None, typer.Option(help="The best label so far, in the model's unit.")
    ] = None,
    number: Annotated[int, typer.Option("-n", help="Structures to choose.", min=1)] = 50,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".csv, .json, .jsonl or .parquet")
    ] = None,
) -> None:
    """Choose what to compute next: matattn suggest RUN/model pool.jsonl --maximize band_gap.

    Structures of the pool are ranked by expected improvement over the best label so far, or with
    --learn by the width of their intervals; what is near a chosen one counts less. It also says how
    many structures are expected to be better than the best: with less than one, stop.
    """
    from matattn.errors import MatattnError

    try:
        _suggest(model, pool, maximize, minimize, learn, best, number, output)
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _suggest(
    model: str, inputs: list[str], maximize: str | None, minimize: str | None, learn: str | None,
    best: float | None, number: int, output: Path | None,
) -> None:  # fmt: skip
    from matattn.cli.similar import read_pool
    from matattn.errors import ConfigError
    from matattn.tables import check_output, csv_text, write_table

    goals = [(name, sign) for name, sign in ((maximize, 1), (minimize, -1), (learn, 0)) if name]
    if len(goals) != 1:
        raise ConfigError("give one of --maximize, --minimize and --learn, with a target")
    if learn and best is not None:
        raise ConfigError("--best: is of no use with --learn; leave it out")
    if output is not None:
        check_output(output)
    predictor, pool = read_pool(model, inputs)
    from matattn.workflows.structures import suggest as suggestions

    goal = suggestions.Goal(*goals[0], best)
    found = suggestions.suggest(predictor, pool, goal, number)
    units = {target["name"]: target["unit"] for target in predictor.targets}
    unit = units[goal.target]
    rows = found.rows(pool, goal, unit)
    if found.best is not None:
        whose = "label" if best is not None else "prediction"
        print(f"best {whose} {found.best:g} {unit}; {found.better:.1f} of {len(pool.names)} "
              "structures are expected to be better", file=sys.stderr)  # fmt: skip
        if best is not None and found.better is not None and found.better < 1:
            print("less than one: the pool is probably exhausted for this model", file=sys.stderr)
    if output is not None:
        write_table(output, rows)
    else:
        sys.stdout.write(csv_text(rows))
