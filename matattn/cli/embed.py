"""``matattn embed``: structures in, the features that a network has of them out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Model
from matattn.cli.predict import outcome, screened

if TYPE_CHECKING:
    from matattn.tables import Row


def embed(
    model: Model,
    inputs: Annotated[
        list[str], typer.Argument(help="Structures, as of `matattn predict`: files, folders, ...")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".csv, .json, .jsonl, .parquet or .npz")
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Write the features of structures: matattn embed mp-formation-energy *.cif -o features.npz.

    They are what the network knows before its last layers, for clustering, maps and models of
    one's own. One row per structure with id, status and message, as of `matattn predict`; of a
    model of atoms one row per atom. A structure that cannot be used does not stop the others.
    """
    from matattn import pretrained
    from matattn.errors import BundleError, MatattnError

    rows: list[Row] = []

    def work() -> str:
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "structures":
            raise BundleError(f"{folder}: this model reads {kind}; only structures have features")
        from matattn.workflows.structures.embed import check

        check(output)
        return screened(folder, inputs, device, rows, embed=True)

    message, status = outcome(work, rows)
    try:
        if rows:
            from matattn import bundle
            from matattn.workflows.structures.embed import write

            write(output, rows, bundle.fingerprint(pretrained.find(model)))
    except MatattnError as error:
        message, status = f"error: {error}", 2
    print(message, file=sys.stderr)
    if status:
        raise typer.Exit(status)
