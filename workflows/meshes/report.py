"""What a finished run on fields shows to people: table, plots on the mesh, values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from rich.table import Table

from matattn.config import RunConfig
from matattn.meshes.baselines import relative_l2
from matattn.meshes.batch import InputScaling, collate_meshes
from matattn.meshes.fields import Field, FieldDataset, MeshSample
from matattn.meshes.network import MeshNetwork
from matattn.runtime import machine
from matattn.uncertainty import FEWEST_ROWS, LEVEL
from matattn.workflows import reporting

_BASELINES = {
    "constant": "constant",
    "mean_field": "mean field",
    "nearest_sample": "nearest sample",
    "kernel_ridge": "kernel ridge",
}
_INSIDE = ("in_interval", "maximum_in_interval", "field_in_band")
_HEADER = (
    "split", "field", "relative L2", "averaged weights", *_BASELINES.values(), "samples",
    "in interval: nodes, maxima, fields",
)  # fmt: skip


def results_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table: error of every split and field beside its baselines."""
    return reporting.text_table(
        "Relative L2 errors", _HEADER, _result_rows(metrics), left=("split", "field")
    )


def _result_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for split in ("test", "val", "train"):
        for field, result in metrics.get(split, {}).items():
            errors = [result["relative_l2"], result.get("relative_l2_ema")]
            errors += [result["baselines"].get(name) for name in _BASELINES]
            texts = ["" if error is None else f"{error:.4f}" for error in errors]
            shares = [f"{100 * result[key]:.0f} %" for key in _INSIDE if key in result]
            rows.append([split, field, *texts, str(result["n"]), ", ".join(shares)])
    return rows


def typical(errors: np.ndarray) -> list[int]:
    """Return the samples with the least, the median and the largest error, from [n, T]."""
    order = errors.mean(1).argsort()
    return [int(order[0]), int(order[len(order) // 2]), int(order[-1])]


def field_plots(
    dataset: FieldDataset,
    samples: Sequence[MeshSample],
    predicted: Sequence[np.ndarray],
    picked: Sequence[int],
) -> dict[str, Figure]:
    """Draw truth, prediction and error of three samples, best to worst, in a file for each field.

    Meshes in space are seen along their thinnest axis.
    """
    figures = {}
    for column, field in enumerate(dataset.targets):
        figure = Figure(figsize=(11, 3.2 * len(picked)), layout="constrained")
        for line, (number, name) in enumerate(
            zip(picked, ("best", "median", "worst"), strict=True)
        ):
            sample = samples[number]
            true, made = sample.y[:, column], predicted[number][:, column]
            error = relative_l2(true[:, None], made[:, None])[0]
            low, high = float(true.min()), float(true.max())
            largest = float(np.abs(made - true).max()) or 1.0
            parts = (
                (true, f"{name} of {len(samples)}: {sample.id}", "viridis", low, high),
                (made, "predicted", "viridis", low, high),
                (made - true, f"error (relative L2 {error:.3f})", "RdBu_r", -largest, largest),
            )
            for place, (values, title, colors, least, most) in enumerate(parts):
                axes = figure.add_subplot(len(picked), 3, 3 * line + place + 1)
                drawn = _draw(axes, sample, values, colors, least, most, dataset.coordinates)
                axes.set_title(title, fontsize=9)
                label = f"{field.name.replace('_', ' ')} / {field.unit or '1'}"
                figure.colorbar(drawn, ax=axes, label=label if place != 1 else "")
        figures[f"fields_{field.name}.png"] = figure
    return figures


def _draw(
    axes: Any,
    sample: MeshSample,
    values: np.ndarray,
    colors: str,
    low: float,
    high: float,
    coordinates: Sequence[Field],
) -> Any:
    spread = np.ptp(sample.pos, axis=0)
    across, up = sorted(np.argsort(spread)[-2:]) if len(spread) > 1 else (0, 0)
    x, y = sample.pos[:, across], sample.pos[:, up]
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)
    for name, column in (("xlabel", across), ("ylabel", up)):
        described = coordinates[column]
        axes.set(**{name: f"{described.name} / {described.unit or '1'}"})
    style = {"cmap": colors, "vmin": low, "vmax": high, "rasterized": True}
    triangles = _triangles(sample)
    if triangles is not None:
        return axes.tripcolor(Triangulation(x, y, triangles), values, shading="gouraud", **style)
    return axes.scatter(x, y, c=values, s=max(1.0, 4000 / len(x)), linewidths=0, **style)


def _triangles(sample: MeshSample) -> np.ndarray | None:
    """Return the plane cells of a mesh as triangles; None when it has none or is not plane."""
    if sample.pos.shape[1] != 2:
        return None
    parts = [sample.cells["triangle"]] if "triangle" in sample.cells else []
    if "quad" in sample.cells:
        quads = sample.cells["quad"]
        parts += [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
    return np.concatenate(parts) if parts else None


def loss_plot(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw training and validation error over the epochs."""
    labels = {"train/loss": "training loss", "val/loss": "validation, relative L2"}
    return reporting.loss_plot([rows], labels, "relative L2 error")


def spectrum_plot(network: MeshNetwork, sample: MeshSample, scaling: InputScaling) -> Figure | None:
    """Draw the eigenvalues of the mixing matrix of every head and block on one mesh.

    Returns None for a network that has no such matrix.
    """
    batch = collate_meshes([sample], scaling).to(next(network.parameters()).device)
    if (spectrum := network.spectrum(batch)) is None:
        return None
    values = spectrum[0].cpu()
    blocks, heads, latents = values.shape
    columns = min(blocks, 4)
    figure = Figure(figsize=(3 * columns, 2.6 * -(-blocks // columns)), layout="constrained")
    for block in range(blocks):
        axes = figure.add_subplot(-(-blocks // columns), columns, block + 1)
        for head in range(heads):
            axes.semilogy(np.arange(1, latents + 1), values[block, head].clamp(min=1e-8))
        rank = effective_rank(values[block]).mean().item()
        axes.set_title(f"block {block + 1}: mean effective rank {rank:.1f}", fontsize=8)
        axes.set(ylim=(1e-8, 2), ylabel="" if block % columns else "eigenvalue")
        if block >= blocks - columns:
            axes.set_xlabel("number of the eigenvalue")
    return figure


def effective_rank(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Return the exponential of the entropy of the eigenvalues' shares [..., M] -> [...]."""
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def values(
    config: RunConfig,
    dataset: FieldDataset,
    metrics: Mapping[str, Any],
    shown: str,
    figures: Mapping[str, Figure],
) -> dict[str, Any]:
    """Return what the report says; ``shown`` is the split of its pictures."""
    nodes = [len(sample.pos) for sample in dataset.items]
    return {
        "title": f"{config.model.name} on {dataset.name}, seed {config.seed}",
        "header": _HEADER,
        "rows": _result_rows(metrics),
        "dataset": dataset,
        "shown": shown,
        "pictures": list(figures),
        "intervals": any("in_interval" in of for of in metrics.get("train", {}).values()),
        "level": LEVEL,
        "fewest": FEWEST_ROWS,
        "machine": machine(config.accelerator),
        "nodes": (min(nodes), max(nodes)),
        "fields": {
            kind: _described(getattr(dataset, kind))
            for kind in ("coordinates", "inputs", "targets")
        },
    }


def _described(fields: Sequence[Any]) -> str:
    return ", ".join(f"{field.name} ({field.unit or '1'})" for field in fields)
