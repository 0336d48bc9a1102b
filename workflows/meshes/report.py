"""What a finished run on fields shows to people: table, plots on the mesh, report, model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from rich.table import Table

import matattn
from matattn.citations import LICENCES
from matattn.meshes.baselines import relative_l2
from matattn.meshes.batch import InputScaling, collate_meshes
from matattn.meshes.fields import Field, FieldDataset, MeshSample
from matattn.meshes.network import MeshNetwork
from matattn.runtime import machine
from matattn.workflows.reporting import save_figure
from matattn.workflows.reporting import without_pictures as card_text

__all__ = ["card_text", "field_plots", "loss_plot", "report_text", "results_table",
           "spectrum_plot", "typical"]  # fmt: skip

_BASELINES = {
    "constant": "constant",
    "mean_field": "mean field",
    "nearest_sample": "nearest sample",
    "kernel_ridge": "kernel ridge",
}
_HEADER = ("split", "field", "relative L2", "averaged weights", *_BASELINES.values(), "samples")


def results_table(metrics: dict[str, Any]) -> Table:
    """The final table: error of every split and field beside its baselines."""
    table = Table(title="Relative L2 errors")
    for column in _HEADER:
        table.add_column(column, justify="left" if column in ("split", "field") else "right")
    for row in _result_rows(metrics):
        table.add_row(*row)
    return table


def _result_rows(metrics: dict[str, Any]) -> list[list[str]]:
    rows = []
    for split in ("test", "val", "train"):
        for field, result in metrics.get(split, {}).items():
            errors = [result["relative_l2"], result.get("relative_l2_ema")]
            errors += [result["baselines"].get(name) for name in _BASELINES]
            texts = ["" if error is None else f"{error:.4f}" for error in errors]
            rows.append([split, field, *texts, str(result["n"])])
    return rows


def typical(errors: np.ndarray) -> list[int]:
    """The samples with the least, the median and the largest error, from [n, T]."""
    order = errors.mean(1).argsort()
    return [int(order[0]), int(order[len(order) // 2]), int(order[-1])]


def field_plots(
    folder: Path,
    dataset: FieldDataset,
    samples: Sequence[MeshSample],
    predicted: Sequence[np.ndarray],
    picked: Sequence[int],
) -> None:
    """``fields_<name>.png``: truth, prediction and error of three samples, best to worst.

    Meshes in space are seen along their thinnest axis.
    """
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
        save_figure(figure, folder / f"fields_{field.name}.png")


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
    """The plane cells of a mesh as triangles, or None when it has none or is not plane."""
    if sample.pos.shape[1] != 2:
        return None
    parts = [sample.cells["triangle"]] if "triangle" in sample.cells else []
    if "quad" in sample.cells:
        quads = sample.cells["quad"]
        parts += [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
    return np.concatenate(parts) if parts else None


def loss_plot(path: Path, rows: list[dict[str, float]]) -> None:
    """Training and validation error over the epochs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    named = {"train/loss": "training loss", "val/loss": "validation, relative L2"}
    for key, label in named.items():
        values = [row.get(key, np.nan) for row in rows]
        if not np.isnan(values).all():
            axes.plot([row["epoch"] for row in rows], values, ".-", markersize=3, label=label)
    axes.set(xlabel="epoch", ylabel="relative L2 error", yscale="log")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def spectrum_plot(
    path: Path, network: MeshNetwork, sample: MeshSample, scaling: InputScaling
) -> None:
    """Eigenvalues of the mixing matrix of every head and block on one mesh."""
    batch = collate_meshes([sample], scaling).to(next(network.parameters()).device)
    if (spectrum := network.spectrum(batch)) is None:
        return
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
    save_figure(figure, path)


def effective_rank(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the eigenvalues' shares [..., M] -> [...]."""
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def report_text(
    config: dict[str, Any], dataset: FieldDataset, metrics: dict[str, Any], shown: str, model: str
) -> str:
    """report.md: errors beside baselines, comparability, data, settings, how to use ``model``."""
    network = config["model"]["_target_"].rsplit(".", 1)[-1]
    nodes = [len(sample.pos) for sample in dataset.items]
    lines = [
        f"# {network} on {dataset.name}, seed {config['seed']}",
        "",
        "Relative L2 errors, |predicted - true| / |true| over the nodes of a sample in physical"
        " units, mean over the samples; beside them those of predictions that need no network,"
        " made from the same training samples"
        + (
            ":"
            if dataset.aligned
            else " (nodes do not correspond between samples, so there is no"
            " mean field and no kernel ridge regression):"
        ),
        "",
        "| " + " | ".join(_HEADER) + " |",
        "|" + "---|" * len(_HEADER),
        *("| " + " | ".join(row) + " |" for row in _result_rows(metrics)),
        "",
        f"Comparability: {dataset.note or 'the data set says nothing about comparability.'}",
        "The checkpoint was selected on the validation samples: their error is optimistic."
        if config["task"]["select"] == "best"
        else "Nothing was selected on validation samples: these are the last epoch's weights.",
        "One seed: differences to another model need at least three.",
        "",
        *(f"![truth, prediction, error](fields_{field.name}.png)" for field in dataset.targets),
        "![loss](loss.png)",
        *(["![spectrum](spectrum.png)"] if network == "FLARE" else []),
        "",
        "## Run",
        "",
        f"- {metrics['parameters']:,} trainable parameters, {metrics['train_time_s']:.0f} s of "
        f"training, {config['trainer']['max_epochs']} epochs, batches of "
        f"{config['task']['batch_size']} meshes",
        f"- learning rate {config['optimizer']['lr']:g}",
        f"- machine: {machine(config['trainer']['accelerator'])}",
        f"- samples: {', '.join(f'{split} {count}' for split, count in metrics['rows'].items())}; "
        f"{min(nodes):,} to {max(nodes):,} nodes; left out: {len(dataset.skipped)}",
        *(f"  - {message}" for message in dataset.skipped[:10]),
        f"- coordinates: {_described(dataset.coordinates)}",
        f"- input fields: {_described(dataset.inputs) or 'none'}",
        f"- predicted fields: {_described(dataset.targets)}",
        f"- licence of the data: {LICENCES.get(dataset.name, 'see their source')}",
        f"- matattn {matattn.__version__}; configuration: config.yaml; error of every sample: "
        "predictions.csv",
        f"- fields/*.vtu: {shown} samples with truth, prediction and error, for ParaView",
        "",
        "## Use",
        "",
        "```",
        f"matattn predict {model} *.vtu -o predicted",
        "```",
        "",
    ]
    return "\n".join(lines)


def _described(fields: Sequence[Any]) -> str:
    return ", ".join(f"{field.name} ({field.unit or '1'})" for field in fields)
