"""``matattn screen``: which of many structures meet criteria, and with which probability."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Model

if TYPE_CHECKING:
    from matattn.workflows.screening.engine import Workers
    from matattn.workflows.screening.plan import Plan


def screen(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders and globs: JSON lines, Parquet, .aselmdb, ASE's .db, archives "
            "(.tar, .tar.gz) of CIFs, and whatever predict reads."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder; one with the same screening goes on.")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(help="'band_gap in 1.1:1.7', 'log10_bulk_modulus > 2'; several: all of them."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="A further model, for criteria on its targets.")
    ] = None,
    keep: Annotated[int, typer.Option("-n", "--keep", help="Rows of hits.csv.", min=1)] = 1000,
    shard: Annotated[
        str, typer.Option(help="i/n: this process takes a part of n; all write into one folder.")
    ] = "1/1",
    processes: Annotated[
        int | None, typer.Option(help="On this machine; default: one per core.", min=1)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Workers of Dask instead: tcp://host:8786.")
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(help="Jobs of Slurm instead: nodes=8,cores=16,memory=32GB,walltime=02:00:00"),
    ] = None,
) -> None:
    """Screen many structures: matattn screen mp-band-gap pool.jsonl --where "band_gap in 1.1:1.7".

    Every structure gets a row with values, 90 % intervals and the probability that it meets all
    criteria, in Parquet files of 1000 rows in FOLDER/parts. The best different crystals stand in
    hits.csv. Memory stays flat. Stopped by anything, the same command goes on where it was.
    """
    from matattn.errors import MatattnError

    try:
        have_values = _screen(
            (model, *(also or [])), sources, output, tuple(where or ()), keep, shard,
            partial(_workers, processes, scheduler, slurm),
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        print("interrupted; the same command goes on with the parts that are left",
              file=sys.stderr)  # fmt: skip
        (number,) = stopped.args or (2,)  # SIGINT
        raise typer.Exit(128 + number) from None
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if not have_values:
        raise typer.Exit(1)


def _workers(processes: int | None, scheduler: str | None, slurm: str | None) -> Workers:
    from matattn.errors import ConfigError
    from matattn.extras import import_extra

    if sum(choice is not None for choice in (processes, scheduler, slurm)) > 1:
        raise ConfigError("--processes, --scheduler and --slurm exclude each other")
    if scheduler is None and slurm is None:
        from matattn.workflows.screening import engine

        return partial(engine.local, processes)
    clusters = import_extra("matattn.workflows.screening.clusters")
    tell = partial(print, file=sys.stderr)
    if scheduler is not None:
        return partial(clusters.dask, scheduler, tell)
    clusters.slurm_settings(slurm)  # a mistake is told before any work
    return partial(clusters.slurm, slurm, tell)


def _screen(
    models: tuple[str, ...], names: list[str], output: Path, where: tuple[str, ...], keep: int,
    shard: str, make_workers: partial[Workers],
) -> bool:  # fmt: skip
    """Make what is missing of a screening; return whether any of its structures has values."""
    import time

    from matattn.cli.predict import until_terminated
    from matattn.extras import import_extra
    from matattn.runtime import peak_memory, start_predicting

    start_predicting()
    parts = import_extra("matattn.workflows.screening.parts")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from matattn.workflows.screening import criteria, engine, hits, sources
    from matattn.workflows.screening.plan import Plan, parse_shard

    plan = Plan(
        str(output), models, tuple(map(str, sources.find(names))), where,
        **dict(zip(("shard", "shards"), parse_shard(shard), strict=True)),
    )  # fmt: skip
    criteria.check(plan.criteria, parts.predictors(plan.models, plan.sums))
    workers = make_workers()
    console = Console(stderr=True)
    columns = (TextColumn("structures"), MofNCompleteColumn(), TimeElapsedColumn())
    begin = time.perf_counter()
    with (
        until_terminated(),
        plan.claim(),
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("structures", total=None)
        progress = engine.run(plan, workers, lambda rows: bar.advance(task, rows))
        seconds = time.perf_counter() - begin
        earlier = f", {progress.earlier} of them earlier" if progress.earlier else ""
        print(
            f"{progress.with_values} of {progress.earlier + progress.made} structures have values"
            f"{earlier}; {progress.made / seconds:.0f}/s, peak memory of this process "
            f"{peak_memory() / 2**30:.2f} GB",
            file=sys.stderr,
        )
        failed = progress.with_values == 0 < progress.earlier + progress.made
        if failed:
            print(f"the first: {hits.first_error(plan)}", file=sys.stderr)
        _finish(plan, keep)
    return not failed


def _finish(plan: Plan, keep: int) -> None:
    """Write the best structures once all shards are done."""
    from matattn.tables import write_table
    from matattn.workflows.reporting import save_figure
    from matattn.workflows.screening import hits

    folder = Path(plan.folder)
    if not hits.is_complete(plan):
        print(f"written: {folder}; hits.csv follows when all shards are done")
        return
    summary = hits.summarize(plan)
    print(f"{summary.repeated} structures repeat an earlier one; {summary.flagged} are flagged as "
          "unlike the training data")  # fmt: skip
    if plan.where and summary.with_values:
        rows = hits.table(plan, summary, keep)
        write_table(folder / "hits.csv", rows)
        if rows:
            save_figure(hits.plot(plan, rows), folder / "hits.png")
        print(f"{summary.expected:.1f} different crystals are expected to meet all criteria; the "
              f"{len(rows)} most probable: {folder / 'hits.csv'}")  # fmt: skip
    print(f"all rows: {folder / 'parts'}")
