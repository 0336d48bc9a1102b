"""``matattn relax``: crystals in, crystals at rest out."""

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


def relax(
    model: Potential,
    inputs: Crystals,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for CIF files and relaxed.csv.")
    ],
    pressure: Annotated[float, typer.Option(help="GPa.")] = 0.0,
    fixed_cell: Annotated[bool, typer.Option("--fixed-cell", help="Move atoms only.")] = False,
    fixed_symmetry: Annotated[
        bool, typer.Option("--fixed-symmetry", help="Keep the space group (within 0.01 Å).")
    ] = False,
    max_force: Annotated[float, typer.Option(help="eV/Å; at rest below it.")] = 0.01,
    max_stress: Annotated[float, typer.Option(help="GPa; at rest below it.")] = 0.1,
    max_steps: Annotated[int, typer.Option(help="After so many a crystal is given up.")] = 500,
    path: Annotated[bool, typer.Option("--path", help="Write all steps: <id>.extxyz.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Relax crystals with a potential: matattn relax RUN/model *.cif -o relaxed.

    Writes a CIF file for each and one table: energies before and after, steps, what is left of
    forces and stress, change of volume, status and message. The same command goes on where it was
    stopped. The exit status is 1 only if no crystal came to rest.
    """
    from matattn import pretrained
    from matattn.errors import MatattnError
    from matattn.runtime import start_predicting

    rows: list[Row] = []

    def work() -> str:
        if min(max_force, max_stress) <= 0 or max_steps < 0:
            raise MatattnError(
                "--max-force and --max-stress must be above 0, --max-steps 0 or more"
            )
        folder = pretrained.find(model)
        start_predicting()
        from matattn.workflows.potentials import predict as potentials
        from matattn.workflows.potentials.relax_files import relax_entries
        from matattn.workflows.potentials.relaxation import Settings

        potential = potentials.Potential.load(folder, device)
        settings = Settings(max_force, max_stress, pressure, fixed_cell, fixed_symmetry, max_steps)
        with crystals(inputs) as (stream, advance):
            return relax_entries(potential, folder, stream, output, settings, rows, path, advance)

    message, status = outcome(work, rows)
    if rows:
        from matattn.workflows.potentials.relax_files import save

        save(output, rows)
    print(message, file=sys.stderr)
    if status:
        raise typer.Exit(status)
