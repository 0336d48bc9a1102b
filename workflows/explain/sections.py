"""Sections of a report that all families share, made from the numbers in the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from matattn.workflows.explain.report import Section, TableRows

BASELINES = {"random": "0.6", "shortest first": "black"}


def ranges_table(entropy: Sequence[Any], reach: Sequence[Any], unit: str) -> TableRows:
    """Return a table of every head's entropy and mean length attended to, both [L, H]."""
    rows = [
        [f"layer {layer + 1}, head {head + 1}", f"{value:.2f}", f"{reach[layer][head]:.3g}"]
        for (layer, head), value in np.ndenumerate(np.array(entropy))
    ]
    return ["head", "entropy / nats", f"mean length attended to / {unit}"], rows


def heads_section(result: Mapping[str, Any], mean: str) -> Section:
    """Return the section on heads; ``mean`` says how changes are averaged."""
    heads, per = result["heads"], f" / {result['unit']}" if result["unit"] else ""
    spearman = heads["spearman_importance_ablation"]
    text = (
        "Importance is the derivative of the prediction by a gate on the head; ablation, the "
        "truth it is checked against, sets the head's output to zero. Heads are ranked on one half "
        f"of the samples and measured on the other ({heads['measured_on']})."
        + ("" if spearman is None else f" Spearman's correlation of both: {spearman:.2f}.")
    )
    return Section(
        "Heads",
        text,
        [
            (_importance_figure(heads, per), "Importance and ablation of the heads."),
            (_pruning_figure(heads["pruning"], mean, per), "Heads removed one by one."),
        ],
    )


def _importance_figure(heads: Mapping[str, Any], per: str) -> Figure:
    """Return maps of importance and ablation [L, H], and one against the other."""
    importance, ablation = np.array(heads["importance"]), np.array(heads["ablation"])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for axes, table, title in (
        (first, importance, f"E |df/dξ|{per}"),
        (second, ablation, f"change without it{per}"),
    ):
        image = axes.imshow(table, cmap="magma", aspect="auto")
        axes.set(title=title, xlabel="head", ylabel="layer")
        axes.set_xticks(range(table.shape[1]), range(1, table.shape[1] + 1))
        axes.set_yticks(range(table.shape[0]), range(1, table.shape[0] + 1))
        figure.colorbar(image, ax=axes)
    third.scatter(importance, ablation, s=14)
    third.set(xlabel=f"importance{per}", ylabel=f"ablation{per}", title="each head")
    return figure


def _pruning_figure(pruning: Mapping[str, Any], mean: str, per: str) -> Figure:
    """Return the error, or the change without labels, against the number of removed heads."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    kind = "error" if pruning["error"] is not None else "change"
    axes.plot(pruning[kind], marker="o", label="least important first")
    axes.plot(pruning[f"{kind}_random"], marker=".", color="0.6",
              label=f"random ({pruning['random_orders']} orders)")  # fmt: skip
    axes.set(xlabel="heads removed", ylabel=f"{mean} {kind}{per}", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure


def faithfulness_section(result: Mapping[str, Any], removed: str) -> Section:
    """Return the section on removal curves; ``removed`` are edges or points."""
    orders, unit, rules = result["faithfulness"]["orders"], result["unit"], result["removal_rules"]
    shares = 100 * np.array(result["faithfulness"]["shares"])
    figures = []
    for rule, meaning in rules.items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, kind, better in (
            (left, "comprehensiveness", f"first {removed} removed: higher is more faithful"),
            (right, "sufficiency", f"only first {removed} kept: lower is more faithful"),
        ):
            for name, curves in orders.items():
                dashed = "--" if name in BASELINES else "-"
                axes.plot(shares, curves[rule][kind], dashed, marker=".", label=name,
                          color=BASELINES.get(name))  # fmt: skip
            axes.set(xscale="log", xlabel=f"share of the {removed} / %", title=better)
        left.set_ylabel(f"mean |change| / {unit}")
        right.legend(fontsize=7)
        figures.append((figure, f"Rule “{rule}”: {meaning}."))
    kinds = ("comprehensiveness_aopc", "sufficiency_aopc")
    rows = [
        [name, *(f"{curves[rule][kind]:.3g}" for rule in rules for kind in kinds)]
        for name, curves in orders.items()
    ]
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
    """Return the section on how far every two methods agree."""
    agreement = result["agreement"]
    names = list(dict.fromkeys(name for pair in agreement for name in pair.split(" | ")))
    table = np.eye(len(names))
    for pair, values in agreement.items():
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
    """Return the section on what shuffled weights leave of the order."""
    shuffled = result["shuffled_weights"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, taus in shuffled["tau"].items():
        if name not in BASELINES:
            values = [1.0, *(np.nan if tau is None else tau for tau in taus)]
            axes.plot([0, *shuffled["shuffled_blocks"]], values, marker=".", label=name)
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set(xlabel="blocks with shuffled weights, from the last", ylabel="Kendall's tau")
    axes.legend(fontsize=7)
    text = (
        "What remains of the order of the edges when the weights of the blocks are shuffled. What "
        "stays near 1 is the network's construction, not its knowledge."
    )
    return Section("Is it what was learned?", text, [(figure, "Shuffled weights.")])
