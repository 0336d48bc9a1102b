"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A name of `matattn models`, or the model/ folder of a finished run.")
]
