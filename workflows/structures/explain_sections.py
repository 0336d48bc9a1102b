"""What the report says and shows of explained structures, made from the numbers in the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from matattn.workflows.explain.report import Section
from matattn.workflows.explain.sections import (
    agreement_section,
    faithfulness_section,
    heads_section,
    ranges_table,
    shuffled_section,
)
from matattn.workflows.structures.standard_model import LEVEL

COMMON_PAIRS = 4  # pairs of species in plots over distance
MOST_CONSTANTS = 400  # in the table, those that are identified first; all are in the JSON


def sections(result: Mapping[str, Any]) -> list[Section]:
    """Return all sections of a report on crystals or molecules."""
    parts = [
        _summary(result),
        _distance(result),
        heads_section(result, "mean"),
        faithfulness_section(result, "edges"),
        agreement_section(result),
        shuffled_section(result),
    ]
    if result["standard_model"]["constants"]:
        parts.append(_standard_model(result))
    if result["comparisons"]:
        parts.append(_comparisons(result))
    return parts


def _summary(result: Mapping[str, Any]) -> Section:
    """Return the section on what is explained, and what the numbers say of it."""
    unit, checks = result["unit"], result["checks"]
    error = result["mean_absolute_error"]
    text = (
        f"{result['network']} predicts {result['target']} in {unit}. Explained are "
        f"{len(result['structures'])} structures ({result['data']})"
        + ("." if error is None else f"; their mean absolute error is {error:.3g} {unit}.")
        + "\n\n"
        + " ".join(findings(result))
        + "\n\nAn explanation says what this network does, not what nature does. Weights are not "
        "causes: read the removal curves before any picture."
    )
    rows = [
        [f"{kind} attention", f"{checks[kind]['change']:.3g}", f"{checks[kind]['jsd']:.3f}"]
        for kind in ("uniform", "permuted", "adversarial")
    ]
    header = ["attention replaced by", f"mean |change| / {unit}", "divergence from own (max 0.693)"]
    return Section("What to make of it", text, tables=[(header, rows)])


def findings(result: Mapping[str, Any]) -> list[str]:
    """Return the sentences that the numbers carry, each with its numbers."""
    unit, checks = result["unit"], result["checks"]
    curves = {
        name: by_rule["renormalised"]["comprehensiveness_aopc"]
        for name, by_rule in result["faithfulness"]["orders"].items()
    }
    near, chance = curves["shortest first"], curves["random"]
    sentences = [
        f"Removing the neighbours with the most {name} changes predictions by "
        f"{curves[name]:.3g} {unit} on average over shares of 1 to 50 %, removing the nearest "
        f"ones by {near:.3g}, random ones by {chance:.3g}."
        for name in ("attention", "value-weighted attention")
    ]
    permuted, adversarial = checks["permuted"], checks["adversarial"]
    part = adversarial["jsd"] / permuted["jsd"] if permuted["jsd"] else 0
    sentences.append(
        f"An attention {part:.0%} as far from the network's own as a permuted one was found that "
        f"changes predictions by {adversarial['change']:.2g} {unit} (at most "
        f"{checks['tolerance']:.2g}): "
        + (
            "the weights alone do not determine the prediction."
            if part > 0.5
            else "the weights are bound to the prediction to that extent."
        )
    )
    stays = result["shuffled_weights"]["tau"]["attention"][-1]
    if stays is not None:
        sentences.append(
            f"With the weights of all blocks shuffled, the order of the neighbours by attention "
            f"keeps a Kendall tau of {stays:.2f}: "
            + (
                "much of it comes from how the network is built, not from what it learned."
                if stays > 0.3
                else "it comes from what was learned."
            )
        )
    return sentences


def _grid(layers: int, heads: int, height: float = 1.9) -> tuple[Figure, np.ndarray]:
    """Return a figure, and its axes [L, H]."""
    figure = Figure(figsize=(max(5.0, 2.1 * heads), height * layers + 0.5), layout="constrained")
    return figure, figure.subplots(layers, heads, squeeze=False, sharex=True)


def _species_maps(
    table: np.ndarray, species: list[str], limits: tuple[float, float], cmap: str, label: str
) -> Figure:
    """Return a map [S, S] for each layer and head of ``table`` [L, H, S, S]."""
    figure, grid = _grid(*table.shape[:2])
    for (layer, head), axes in np.ndenumerate(grid):
        image = axes.imshow(table[layer, head], vmin=limits[0], vmax=limits[1], cmap=cmap)
        axes.set_xticks(range(len(species)), species, fontsize=6)
        axes.set_yticks(range(len(species)), species, fontsize=6)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
    figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6, label=label)
    return figure


def _distance(result: Mapping[str, Any]) -> Section:
    """Return the section on attention against distance and species."""
    attention = result["attention"]
    table = np.array(attention["between_species"])
    shares = _species_maps(table, attention["species"], (0, 1), "viridis", "share of the attention")
    return Section(
        "Attention against distance and species",
        "Means over all explained structures. An atom's attention to itself counts in the shares "
        "between species, but is not drawn against distance.",
        [
            (
                _distance_figure(attention["by_distance"], table.shape[:2]),
                "Mean weight of one neighbour of a pair of species, by distance.",
            ),
            (
                shares,
                "Share of an atom's attention (row) that goes to atoms of a species (column).",
            ),
        ],
        [ranges_table(attention["entropy_nats"], attention["effective_range_A"], "Å")],
    )


def _distance_figure(curves: Mapping[str, Any], shape: tuple[int, ...]) -> Figure:
    """Return the mean weight against distance for each head [L, H] and frequent pair."""
    figure, grid = _grid(*shape)
    for (layer, head), axes in np.ndenumerate(grid):
        for pair, table in list(curves["pairs"].items())[:COMMON_PAIRS]:
            mean = np.array(table, dtype=float)[layer, head]
            axes.plot(curves["middle_A"], mean, marker=".", markersize=3, linewidth=1, label=pair)
        axes.set_yscale("log")
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
        axes.tick_params(labelsize=6)
    figure.supxlabel("distance / Å", fontsize=8)
    figure.supylabel("mean weight of a neighbour", fontsize=8)
    grid[0, 0].legend(fontsize=6, title="who attends to whom", title_fontsize=6)
    return figure


def _standard_model(result: Mapping[str, Any]) -> Section:
    """Return the section on the constants of CoulGAT's law and its node features."""
    model = result["standard_model"]
    rows = []
    constants = model["constants"]
    count = sum(row["verdict"] == "identified" for row in constants)
    first = sorted(constants, key=lambda r: (r["verdict"], r["constant"], r["layer"], r["head"]))
    for row in first[:MOST_CONSTANTS]:
        mean = "" if row["mean"] is None else f"{row['mean']:.3f} ± {row['spread']:.3f}"
        name = f"{row['constant']} {'–'.join(row['species'])}, {row['layer'] + 1}.{row['head'] + 1}"
        rows.append([name, f"{row['initial']:.3f}", f"{row['value']:.3f}", mean, row["verdict"]])
    text = (
        "Constants of the law for each pair of species (target–source) and layer.head. "
        f"{count} of {len(constants)} are identified: Student's t over {model['networks']} "
        "networks (at least three are needed) excludes the value they began with at the "
        f"{LEVEL:.0%} level, so about {LEVEL * len(constants):.0f} would be by chance. The others "
        f"must not be read as physics. The table has {len(rows)} constants, the JSON all."
    )
    species = model["node_features"]["species"]
    table = np.array(model["node_features"]["table"])
    most = float(np.abs(table).max()) or 1.0
    figure = _species_maps(table, species, (-most, most), "coolwarm", "score")
    caption = (
        "Node features: score of a species' query (row) for the mean value of another (column)."
    )
    header = ["constant, layer.head", "at first", "this network", "all networks", "verdict"]
    return Section("Empirical standard model", text, [(figure, caption)], [(header, rows)])


def _comparisons(result: Mapping[str, Any]) -> Section:
    """Return the section on how alike other networks are."""
    rows, figures = [], []
    for model, compared in result["comparisons"].items():
        cosine = compared["cosine"]
        mean = "other numbers of heads" if cosine is None else f"{np.mean(cosine):.3f}"
        low = "" if cosine is None else f"{np.min(cosine):.3f}"
        rows.append([model, mean, low])
        cka = np.array(compared["cka"])
        figure = Figure(figsize=(3.6, 3), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(cka, vmin=0, vmax=1)
        axes.set(xlabel="layer of the other", ylabel="layer of this one")
        for (a, b), value in np.ndenumerate(cka):
            axes.text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w")
        figure.colorbar(image, label="linear CKA")
        figures.append((figure, f"Features of the atoms against those of {model}."))
    header = ["other network", "mean cosine of matched heads", "least"]
    text = (
        "Heads are matched layer by layer by their attention between species; CKA compares the "
        "atoms' features after every block."
    )
    return Section("Other networks", text, figures, [(header, rows)])


def summary_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the table that the command prints: orders of the edges, and how faithful they are."""
    rows = []
    for name, by_rule in result["faithfulness"]["orders"].items():
        curve = by_rule["renormalised"]
        rows.append(
            [name, f"{curve['comprehensiveness_aopc']:.4g}", f"{curve['sufficiency_aopc']:.4g}"]
        )
    return rows
