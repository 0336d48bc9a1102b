"""``matattn models``: the models that come with matattn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path


def models() -> None:
    """List the models that come with matattn: what they predict, and how well.

    Below, what installed packages add: networks, data sets, and what to choose in trainings.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from matattn import plugins, pretrained
    from matattn.tables import show

    if not pretrained.names():
        print("This version of matattn comes without models; train one: matattn train --help")
        return
    title = (
        "Mean absolute errors on validation rows; baseline: linear in composition, of potentials "
        "no force and no stress"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in _TEXTS:
        table.add_column(column)
    for column in _NUMBERS:
        table.add_column(column, justify="right")
    table.add_column("licence")
    for name in pretrained.names():
        for row in _rows(name, pretrained.find(name)):
            table.add_row(*row)
    show(table)
    for package, what in plugins.summary():
        print(f"{package}: {what}")


_TEXTS = ("name", "target", "unit")
_NUMBERS = ("error", "baseline", "training rows", "elements", "size")


def _rows(name: str, folder: Path) -> Iterator[list[str]]:
    """Yield a row for each target, with empty cells for what the config does not say."""
    from matattn.kinds import kind_of

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = config.get("metrics", {})
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    results = metrics.get("val", {})
    if kind_of(config).name == "potentials":
        predicted, baseline = [(key, one["unit"]) for key, one in results.items()], "none"
    else:
        predicted = [(target["name"], target["unit"]) for target in config["targets"]]
        baseline = "linear_composition"
    for target, unit in predicted:
        result = results.get(target, {})
        errors = (result.get("mae"), result.get("baselines", {}).get(baseline))
        yield [
            name,
            target,
            unit,
            *("" if error is None else f"{error:.3f}" for error in errors),
            str(metrics.get("rows", {}).get("train", "")),
            str(len(config["elements"])),
            f"{size:.1f} MB",
            config.get("licence", ""),
        ]
