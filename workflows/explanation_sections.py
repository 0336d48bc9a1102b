"""What the report says and shows of explained structures, made from the numbers in the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from matattn.workflows.explanation_report import Section, TableRows
from matattn.workflows.standard_model import LEVEL

COMMON_PAIRS = 4  # pairs of species in plots over distance
MOST_CONSTANTS = 400  # in the table, those that are identified first; all are in the JSON
BASELINES = {"random": "0.6", "shortest first": "black"}


def sections(result: Mapping[str, Any]) -> list[Section]:
    """All sections of a report on crystals or molecules."""
    found = [_summary(result), _distance(result), heads_section(result, "mean"),
             faithfulness_section(result, "edges"), agreement_section(result),
             shuffled_section(result)]  # fmt: skip
    if result["standard_model"]["constants"]:
        found.append(_standard_model(result))
    if result["comparisons"]:
        found.append(_comparisons(result))
    return found


def _summary(result: Mapping[str, Any]) -> Section:
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
    """Sentences that the numbers carry, each with its numbers."""
    unit, checks = result["unit"], result["checks"]
    curves = {
        name: found["renormalised"]["comprehensiveness_aopc"]
        for name, found in result["faithfulness"]["orders"].items()
    }
    near, chance = curves["shortest first"], curves["random"]
    said = []
    for name in ("attention", "value-weighted attention"):
        said.append(
            f"Removing the neighbours with the most {name} changes predictions by "
            f"{curves[name]:.3g} {unit} on average over shares of 1 to 50 %, removing the nearest "
            f"ones by {near:.3g}, random ones by {chance:.3g}."
        )
    permuted, adversarial = checks["permuted"], checks["adversarial"]
    part = adversarial["jsd"] / permuted["jsd"] if permuted["jsd"] else 0
    said.append(
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
        said.append(
            f"With the weights of all blocks shuffled, the order of the neighbours by attention "
            f"keeps a Kendall tau of {stays:.2f}: "
            + (
                "much of it comes from how the network is built, not from what it learned."
                if stays > 0.3
                else "it comes from what was learned."
            )
        )
    return said


def _grid(layers: int, heads: int, height: float = 1.9) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(5.0, 2.1 * heads), height * layers + 0.5), layout="constrained")
    return figure, figure.subplots(layers, heads, squeeze=False, sharex=True)


def _species_maps(
    table: np.ndarray, species: list[str], limits: tuple[float, float], cmap: str, label: str
) -> Figure:
    """A map [S, S] for each layer and head of ``table`` [L, H, S, S]."""
    figure, places = _grid(*table.shape[:2])
    for (layer, head), place in np.ndenumerate(places):
        image = place.imshow(table[layer, head], vmin=limits[0], vmax=limits[1], cmap=cmap)
        place.set_xticks(range(len(species)), species, fontsize=6)
        place.set_yticks(range(len(species)), species, fontsize=6)
        place.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
    figure.colorbar(image, ax=places.ravel().tolist(), shrink=0.6, label=label)
    return figure


def ranges_table(entropy: Sequence[Any], reach: Sequence[Any], unit: str) -> TableRows:
    """Entropy and mean length attended to of every head, both [L, H]."""
    rows = [
        [f"layer {layer + 1}, head {head + 1}", f"{value:.2f}", f"{reach[layer][head]:.3g}"]
        for (layer, head), value in np.ndenumerate(np.array(entropy))
    ]
    return ["head", "entropy / nats", f"mean length attended to / {unit}"], rows


def _distance(result: Mapping[str, Any]) -> Section:
    curves = result["attention"]["by_distance"]
    middle = np.array(curves["middle_A"])
    shape = np.array(result["attention"]["entropy_nats"]).shape
    figure, axes = _grid(*shape)
    for (layer, head), place in np.ndenumerate(axes):
        for pair, table in list(curves["pairs"].items())[:COMMON_PAIRS]:
            mean = np.array(table, dtype=float)[layer, head]
            place.plot(middle, mean, marker=".", markersize=3, linewidth=1, label=pair)
        place.set_yscale("log")
        place.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
        place.tick_params(labelsize=6)
    figure.supxlabel("distance / Å", fontsize=8)
    figure.supylabel("mean weight of a neighbour", fontsize=8)
    axes[0, 0].legend(fontsize=6, title="who attends to whom", title_fontsize=6)
    species = result["attention"]["species"]
    table = np.array(result["attention"]["between_species"])
    matrix = _species_maps(table, species, (0, 1), "viridis", "share of the attention")
    found = result["attention"]
    ranges = ranges_table(found["entropy_nats"], found["effective_range_A"], "Å")
    return Section(
        "Attention against distance and species",
        "Means over all explained structures. An atom's attention to itself counts in the shares "
        "between species, but is not drawn against distance.",
        [
            (figure, "Mean weight of one neighbour of a pair of species, by distance."),
            (
                matrix,
                "Share of an atom's attention (row) that goes to atoms of a species (column).",
            ),
        ],
        [ranges],
    )


def heads_section(result: Mapping[str, Any], mean: str) -> Section:
    """Importance, ablation and pruning; ``mean`` says how changes are averaged."""
    found, per = result["heads"], f" / {result['unit']}" if result["unit"] else ""
    importance, ablation = np.array(found["importance"]), np.array(found["ablation"])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    maps = figure.subplots(1, 3)
    for place, table, title in (
        (maps[0], importance, f"E |df/dξ|{per}"),
        (maps[1], ablation, f"change without it{per}"),
    ):
        image = place.imshow(table, cmap="magma", aspect="auto")
        place.set(title=title, xlabel="head", ylabel="layer")
        place.set_xticks(range(table.shape[1]), range(1, table.shape[1] + 1))
        place.set_yticks(range(table.shape[0]), range(1, table.shape[0] + 1))
        figure.colorbar(image, ax=place)
    maps[2].scatter(importance, ablation, s=14)
    maps[2].set(xlabel=f"importance{per}", ylabel=f"ablation{per}", title="each head")
    pruning = found["pruning"]
    curve = Figure(figsize=(6, 3.2), layout="constrained")
    axes = curve.subplots()
    kind = "error" if pruning["error"] is not None else "change"
    axes.plot(pruning[kind], marker="o", label="least important first")
    axes.plot(pruning[f"{kind}_random"], marker=".", color="0.6",
              label=f"random ({pruning['random_orders']} orders)")  # fmt: skip
    name = f"{mean} {kind}"
    axes.set(xlabel="heads removed", ylabel=f"{name}{per}", ylim=(0, None))
    axes.legend(fontsize=8)
    spearman = found["spearman_importance_ablation"]
    text = (
        "Importance is the derivative of the prediction by a gate on the head; ablation, the "
        "truth it is checked against, sets the head's output to zero. Heads are ranked on one half "
        f"of the samples and measured on the other ({found['measured_on']})."
        + ("" if spearman is None else f" Spearman's correlation of both: {spearman:.2f}.")
    )
    return Section(
        "Heads", text,
        [(figure, "Importance and ablation of the heads."), (curve, "Heads removed one by one.")],
    )  # fmt: skip


def faithfulness_section(result: Mapping[str, Any], removed: str) -> Section:
    """Removal curves of the ``removed`` edges or points."""
    found, unit = result["faithfulness"]["orders"], result["unit"]
    shares, rules = 100 * np.array(result["faithfulness"]["shares"]), result["removal_rules"]
    figures, rows = [], []
    for rule, meaning in rules.items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for place, kind, better in (
            (both[0], "comprehensiveness", f"first {removed} removed: higher is more faithful"),
            (both[1], "sufficiency", f"only first {removed} kept: lower is more faithful"),
        ):
            for name in found:
                dashed = "--" if name in BASELINES else "-"
                place.plot(shares, found[name][rule][kind], dashed, marker=".", label=name,
                           color=BASELINES.get(name))  # fmt: skip
            place.set(xscale="log", xlabel=f"share of the {removed} / %", title=better)
        both[0].set_ylabel(f"mean |change| / {unit}")
        both[1].legend(fontsize=7)
        figures.append((figure, f"Rule “{rule}”: {meaning}."))
    for name in found:
        row = [name]
        for rule in rules:
            row += [f"{found[name][rule][f'{k}_aopc']:.3g}" for k in
                    ("comprehensiveness", "sufficiency")]  # fmt: skip
        rows.append(row)
    header = [f"order of the {removed}"] + [
        f"{kind}, {rule} / {unit}" for rule in rules for kind in ("removed", "kept")
    ]
    text = (
        f"The first {removed} go in all layers at once; what is explained itself stays. Attention "
        "may decay with distance: an order by attention has to beat the order by distance before "
        "it says anything of its own. The table has means over the shares."
    )
    return Section("Faithfulness", text, figures, [(header, rows)])


def agreement_section(result: Mapping[str, Any]) -> Section:
    """Agreement of the methods."""
    found = result["agreement"]
    names = list(dict.fromkeys(name for pair in found for name in pair.split(" | ")))
    table = np.eye(len(names))
    for pair, values in found.items():
        a, b = (names.index(name) for name in pair.split(" | "))
        tau = np.nan if values["tau"] is None else values["tau"]
        table[a, b] = table[b, a] = tau
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, vmin=-1, vmax=1, cmap="coolwarm")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for (a, b), tau in np.ndenumerate(table):
        axes.text(b, a, f"{tau:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="Kendall's tau")
    text = (
        "Kendall's tau between orders of the same edges, mean over structures. Leaving one out is "
        "the change of the prediction without a single edge."
    )
    return Section("Do the methods agree?", text, [(figure, "Agreement of the methods.")])


def shuffled_section(result: Mapping[str, Any]) -> Section:
    """What shuffled weights leave of the order."""
    found = result["shuffled_weights"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, taus in found["tau"].items():
        if name not in BASELINES:
            values = [1.0, *(np.nan if tau is None else tau for tau in taus)]
            axes.plot([0, *found["shuffled_blocks"]], values, marker=".", label=name)
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set(xlabel="blocks with shuffled weights, from the last", ylabel="Kendall's tau")
    axes.legend(fontsize=7)
    text = (
        "What remains of the order of the edges when the weights of the blocks are shuffled. What "
        "stays near 1 is the network's construction, not its knowledge."
    )
    return Section("Is it what was learned?", text, [(figure, "Shuffled weights.")])


def _standard_model(result: Mapping[str, Any]) -> Section:
    model = result["standard_model"]
    rows = []
    constants = model["constants"]
    count = sum(row["verdict"] == "identified" for row in constants)
    first = sorted(constants, key=lambda r: (r["verdict"], r["constant"], r["layer"], r["head"]))
    for row in first[:MOST_CONSTANTS]:
        mean = "" if row["mean"] is None else f"{row['mean']:.3f} ± {row['spread']:.3f}"
        place = (
            f"{row['constant']} {'–'.join(row['species'])}, {row['layer'] + 1}.{row['head'] + 1}"
        )
        rows.append([place, f"{row['initial']:.3f}", f"{row['value']:.3f}", mean, row["verdict"]])
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
    rows, figures = [], []
    for model, found in result["comparisons"].items():
        cosine = found["cosine"]
        mean = "other numbers of heads" if cosine is None else f"{np.mean(cosine):.3f}"
        low = "" if cosine is None else f"{np.min(cosine):.3f}"
        rows.append([model, mean, low])
        cka = np.array(found["cka"])
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
    """The table that the command prints: orders of the edges, and how faithful they are."""
    rows = []
    for name, found in result["faithfulness"]["orders"].items():
        curve = found["renormalised"]
        rows.append(
            [name, f"{curve['comprehensiveness_aopc']:.4g}", f"{curve['sufficiency_aopc']:.4g}"]
        )
    return rows
