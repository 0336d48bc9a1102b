"""``matattn cite``: BibTeX."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def cite(
    model: Annotated[
        str | None,
        typer.Argument(help="A name of `matattn models`, or a model folder; default: none."),
    ] = None,
) -> None:
    """Print BibTeX of matattn and its networks, or of all that is behind a model."""
    from matattn import pretrained
    from matattn.citations import bibtex
    from matattn.errors import MatattnError

    try:
        config = None
        if model is not None:
            path = pretrained.find(model) / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
        text = bibtex(config)
    except (TypeError, AttributeError, KeyError):  # not what a bundle says
        print(f"error: {model}: config.json names no network and data to cite", file=sys.stderr)
        raise typer.Exit(2) from None
    except (MatattnError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(text)
