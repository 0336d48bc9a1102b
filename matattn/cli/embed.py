"""``matattn embed``: structures in, the features that a network has of them out."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matattn.cli.arguments import Model
from matattn.cli.predict import screened, stop

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
    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "structures":
            raise BundleError(f"{folder}: this model reads {kind}; only structures have features")
        from matattn.workflows.structures import embed as embedding

        embedding.check(output)
        summary = screened(folder, inputs, device, rows, embed=True)
        end = summary, int(all(row["status"] != "ok" for row in rows))
    except KeyboardInterrupt as stopped:
        (number,) = stopped.args or (signal.SIGINT,)
        end = f"interrupted; {len(rows)} finished rows are written", 128 + number
    except MatattnError as error:
        end = f"error: {error}", 2
    finally:
        signal.signal(signal.SIGTERM, earlier)
    message, status = end
    try:
        if rows:
            embedding.write(output, rows)
    except MatattnError as error:
        message, status = f"error: {error}", 2
    print(message, file=sys.stderr)
    if status:
        raise typer.Exit(status)
