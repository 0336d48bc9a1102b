"""Sections of a report that all families share, made from the numbers in the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from matattn.workflows.explain.report import Section, TableRows

BASELINES = {"random": "0.6", "shortest first": "black"}


def ranges_table(entropy: Sequence[Any], reach: Sequence[Any], unit: str) -> TableRows:
    """Entropy and mean length attended to of every head, both [L, H]."""
    rows = [
        [f"layer {layer + 1}, head {head + 1}", f"{value:.2f}", f"{reach[layer][head]:.3g}"]
        for (layer, head), value in np.ndenumerate(np.array(entropy))
    ]
    return ["head", "entropy / nats", f"mean length attended to / {unit}"], rows


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
