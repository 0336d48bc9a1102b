"""``matattn properties``: elastic constants, equation of state and phonons with a potential."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Crystals, Potential
from matattn.cli.predict import outcome

if TYPE_CHECKING:
    from matattn.tables import Row


def properties(
    model: Potential,
    inputs: Crystals,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for properties.csv, tables and plots.")
    ],
    eos: Annotated[bool, typer.Option("--eos", help="Equation of state.")] = False,
    elastic: Annotated[bool, typer.Option("--elastic", help="Elastic constants.")] = False,
    phonon: Annotated[bool, typer.Option("--phonon", help="Phonons, by phonopy.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Compute what a potential says of crystals: matattn properties RUN/model *.cif -o properties.

    Every crystal is relaxed first. Without --eos, --elastic or --phonon: all of them. Elastic
    constants are of the cell's axes as the file has them. The exit status is 1 only if every
    crystal failed.
    """
    from matattn import pretrained
    from matattn.errors import MatattnError
    from matattn.runtime import start_predicting

    rows: list[Row] = []
    asked = [n for n, on in (("eos", eos), ("elastic", elastic), ("phonon", phonon)) if on]

    def work() -> str:
        if not inputs:
            raise MatattnError("give structures after the model: files or folders")
        folder = pretrained.find(model)
        start_predicting()
        from rich.console import Console
        from rich.progress import Progress

        from matattn.structures.stream import StructureStream, find_sources
        from matattn.workflows.potentials import predict as potentials
        from matattn.workflows.potentials.property_files import compute

        potential = potentials.Potential.load(folder, device)
        console = Console(stderr=True)
        with (
            StructureStream(find_sources(inputs)) as stream,
            Progress(console=console, disable=not console.is_terminal) as progress,
        ):
            bar = progress.add_task("crystals", total=stream.total)
            return compute(
                potential, stream, output, asked or ("eos", "elastic", "phonon"), rows,
                lambda crystals: progress.advance(bar, crystals),
            )  # fmt: skip

    message, status = outcome(work, rows)
    print(message, file=sys.stderr)
    if status:
        raise typer.Exit(status)
