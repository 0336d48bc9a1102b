"""The ``matattn`` command: one file per subcommand, heavy imports inside the functions."""

from __future__ import annotations

import typer

from matattn import __version__
from matattn.cli.cite import cite
from matattn.cli.embed import embed
from matattn.cli.evaluate import evaluate
from matattn.cli.explain import explain
from matattn.cli.info import info
from matattn.cli.leaderboard import leaderboard
from matattn.cli.models import models
from matattn.cli.predict import predict
from matattn.cli.properties import properties
from matattn.cli.relax import relax
from matattn.cli.screen import screen
from matattn.cli.similar import similar
from matattn.cli.suggest import suggest
from matattn.cli.sweep import sweep
from matattn.cli.terminal import terminal
from matattn.cli.tokenize import tokenize
from matattn.cli.train import train

app = typer.Typer(
    name="matattn",
    help="Attention models of matter: train them, predict with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(train)
for command in (
    predict,
    screen,
    relax,
    properties,
    embed,
    similar,
    suggest,
    evaluate,
    leaderboard,
    explain,
    tokenize,
    models,
    info,
    cite,
):
    app.command()(command)
app.add_typer(sweep, name="sweep")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"matattn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the ``matattn`` command."""
    with terminal():
        app()
