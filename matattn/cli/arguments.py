"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A name of `matattn models`, or the model/ folder of a finished run.")
]
Potential = Annotated[str, typer.Argument(help="The model/ folder of a run of model=potential.")]
Crystals = Annotated[
    list[str], typer.Argument(help="Files of crystals, folders and globs, as for predict.")
]
