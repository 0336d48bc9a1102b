"""``matattn properties``: elastic constants, equation of state and phonons with a potential."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Crystals, Potential
from matattn.cli.crystals import crystals
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
    from matattn.runtime import start_predicting

    rows: list[Row] = []
    asked = [n for n, on in (("eos", eos), ("elastic", elastic), ("phonon", phonon)) if on]

    def work() -> str:
        folder = pretrained.find(model)
        start_predicting()
        from matattn.workflows.potentials import predict as potentials
        from matattn.workflows.potentials.property_files import compute

        potential = potentials.Potential.load(folder, device)
        with crystals(inputs) as (stream, advance):
            chosen = asked or ("eos", "elastic", "phonon")
            return compute(potential, stream, output, chosen, rows, advance)

    message, status = outcome(work, rows)
    print(message, file=sys.stderr)
    if status:
        raise typer.Exit(status)
