"""Predict fields on meshes with a saved model. Imports no Lightning."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from matattn import bundle
from matattn.errors import DataError
from matattn.meshes.batch import InputScaling, TrainingRange, collate_meshes
from matattn.meshes.fields import Field, MeshSample
from matattn.meshes.files import mesh_files, mesh_name, read_mesh, write_vtu
from matattn.meshes.network import MeshNetwork
from matattn.meshes.uncertainty import SUMMARIES, FieldUncertainty, summary
from matattn.runtime import find_device, on_cpu, peak_memory
from matattn.uncertainty import FEWEST_ROWS, LEVEL, conformal_quantile

NODES_PER_BATCH = 20_000
CPU = torch.device("cpu")
_ENDS = ("", "_lower", "_upper")  # of the names of columns


@dataclass(frozen=True)
class FieldPredictor:
    """A trained network with all it needs: ``FieldPredictor.load(folder).predict(samples)``."""

    network: MeshNetwork
    config: dict[str, Any]
    device: torch.device = CPU
    uncertainty: FieldUncertainty | None = None

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> FieldPredictor:
        """Load the model in ``folder``; raise BundleError or ConfigError."""
        (network,), config, uncertainty = bundle.load(folder)
        where = find_device(device)
        return cls(cast(MeshNetwork, network).to(where), config, where, uncertainty)

    def fields(self, kind: str) -> tuple[Field, ...]:
        """Return the ``coordinates``, ``inputs`` or ``targets`` of the model."""
        return tuple(Field(**described) for described in self.config[kind])

    def remarks(self, sample: MeshSample) -> list[str]:
        """Return what of a mesh is unlike the training, as other units are.

        Models from before that was kept say nothing.
        """
        known = self.config.get("training_range")
        names = [field.name for kind in ("coordinates", "inputs") for field in self.fields(kind)]
        return TrainingRange(**known).strange(sample, names) if known else []

    def predict(self, samples: Sequence[MeshSample]) -> Iterator[np.ndarray]:
        """Yield the predicted fields [N, T] of each sample in physical units; ignore ``y``."""
        for predicted, _ in self.with_features(samples):
            yield predicted

    def with_features(
        self, samples: Sequence[MeshSample]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor | None]]:
        """Yield predicted fields [N, T] and the network's features [F] of each sample, if any."""
        scaling = InputScaling(**self.config["input_scaling"])
        mean, std = (np.array(self.config["normaliser"][key]) for key in ("mean", "std"))
        self.network.eval()
        for group in _by_node_budget(samples):
            batch = collate_meshes(group, scaling).to(self.device)
            with torch.no_grad(), on_cpu():
                output, features = self.network.with_features(batch)
            fields = (output.cpu().numpy() * std + mean).astype(np.float32)
            of_each = [None] * len(batch) if features is None else list(features.cpu())
            yield from zip(np.split(fields, batch.ptr[1:-1].numpy()), of_each, strict=True)

    def functional(
        self,
        compute: Callable[[MeshSample, np.ndarray], float],
        labelled: Sequence[MeshSample],
        level: float = LEVEL,
    ) -> Callable[[MeshSample], tuple[float, float, float]]:
        """Return a function of a sample: value and interval of a quantity of your own.

        Args:
            compute: sample, fields [N, T] -> the quantity, a number.
            labelled: samples with true fields ``y``, like those to come, that no training saw: at
                least 20 of them.
            level: the probability that the true value of a new sample like these is inside.

        Raises:
            ValueError: with fewer samples, or too few for the level.
        """
        errors = [
            abs(compute(sample, predicted) - compute(sample, sample.y))
            for sample, predicted in zip(labelled, self.predict(labelled), strict=True)
        ]
        half = conformal_quantile(torch.tensor(errors, dtype=torch.float64), level)
        if len(errors) < FEWEST_ROWS or not math.isfinite(half):
            raise ValueError(f"{len(errors)} labelled samples are too few for an interval")

        def predict(sample: MeshSample) -> tuple[float, float, float]:
            (predicted,) = self.predict([sample])
            value = compute(sample, predicted)
            return value, value - half, value + half

        return predict


def _by_node_budget(samples: Iterable[MeshSample]) -> Iterator[list[MeshSample]]:
    """Yield samples in their order, at most ``NODES_PER_BATCH`` nodes but one sample at a time."""
    group: list[MeshSample] = []
    nodes = 0
    for sample in samples:
        if group and nodes + len(sample.pos) > NODES_PER_BATCH:
            yield group
            group, nodes = [], 0
        group.append(sample)
        nodes += len(sample.pos)
    if group:
        yield group


def find_meshes(inputs: Sequence[str]) -> list[Path]:
    """Return the mesh files of files, series (.pvd) and folders, sorted within a folder.

    Raises DataError when one does not exist or there is none.
    """
    meshes: list[Path] = []
    for path in map(Path, inputs):
        if path.exists():
            meshes += mesh_files(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not meshes:
        raise DataError(f"no mesh file in {', '.join(inputs)}")
    return meshes


def predict_files(
    predictor: FieldPredictor,
    paths: Sequence[Path],
    output: Path,
    rows: list[dict[str, Any]],
    advance: Callable[[], Any] = lambda: None,
) -> str:
    """Write ``<output>/<name>.vtu`` with the predicted fields for every mesh file.

    ``rows`` gets a row per file: id, path, nodes, of each field the least, the mean and the largest
    predicted value with their intervals and its unit, ``ood_score`` and ``ood_flag``, status and
    message. Intervals and scores are empty for a model without them. A bad file is a row with its
    error and does not stop the others. Returns a line that says how many meshes, how fast, and on
    what.
    """
    begin = time.perf_counter()
    targets = predictor.fields("targets")
    for path, name in zip(paths, _unique(list(map(mesh_name, paths))), strict=True):
        row: dict[str, Any] = {"id": name, "path": str(path), "output": "", "nodes": ""}
        for field in targets:
            row |= {f"{field.name}_{key}{end}": "" for key in SUMMARIES for end in _ENDS}
            row[f"{field.name}_unit"] = field.unit
        row |= {"ood_score": "", "ood_flag": "", "status": "ok", "message": ""}
        try:
            row |= _predict_file(predictor, path, output / f"{name}.vtu")
        except DataError as error:
            row |= {"status": "DataError", "message": str(error)}
        except (MemoryError, RuntimeError) as error:
            row |= {"status": "PredictionError", "message": " ".join(str(error).split())}
        rows.append(row)
        advance()
    seconds = time.perf_counter() - begin
    done = [row for row in rows if row["status"] == "ok"]
    nodes = sum(row["nodes"] for row in done)
    return (
        f"{len(done)} of {len(rows)} meshes ({nodes:,} nodes) in {seconds:.1f} s "
        f"({nodes / seconds:,.0f} nodes/s) on {predictor.device}, {torch.get_num_threads()} "
        f"threads; peak memory {peak_memory() / 2**30:.2f} GB; fields are in {output}/*.vtu"
    )


def _predict_file(predictor: FieldPredictor, path: Path, output: Path) -> dict[str, Any]:
    """Write the fields of a mesh file to ``output``, and return what its row says of them.

    Raises DataError for a file that cannot be read, or that would be overwritten.
    """
    if output.resolve() == path.resolve():
        raise DataError(f"{path}: would be overwritten; give another folder with -o")
    coordinates, inputs, targets = map(predictor.fields, ("coordinates", "inputs", "targets"))
    sample = read_mesh(path, len(coordinates), [field.name for field in inputs])
    ((predicted, features),) = predictor.with_features([sample])
    if not np.isfinite(predicted).all():
        raise DataError(f"{path}: no value: the network overflows on this mesh")
    remarks, known = predictor.remarks(sample), predictor.uncertainty
    fields = {field.name: sample.x[:, column] for column, field in enumerate(inputs)}
    row: dict[str, Any] = {"output": str(output), "nodes": len(sample.pos)}
    values = {name: summary(name, predicted) for name in SUMMARIES}
    for column, field in enumerate(targets):
        fields[field.name] = predicted[:, column]
        row |= {
            f"{field.name}_{name}": float(of_field[column]) for name, of_field in values.items()
        }
    if known is not None:
        novelty = None if features is None else known.novelty(features[None])
        if novelty is not None:
            row |= {"ood_score": float(novelty), "ood_flag": not float(novelty) <= 1}
            if row["ood_flag"]:
                remarks.append("unlike the training meshes: intervals may be too narrow")
        node, whole = known.half_widths(predicted), known.whole_half_widths(predicted)
        halves = {name: known.summary_half_widths(name, predicted) for name in SUMMARIES}
        for column, field in enumerate(targets):
            fields[f"{field.name}_half_width"] = node[:, column].astype(np.float32)
            fields[f"{field.name}_whole_half_width"] = whole[:, column].astype(np.float32)
            for name, half in halves.items():
                value = row[f"{field.name}_{name}"]
                row[f"{field.name}_{name}_lower"] = value - half[column]
                row[f"{field.name}_{name}_upper"] = value + half[column]
    row["message"] = "; ".join(remarks)
    write_vtu(output, sample, fields)
    return row


def _unique(names: Sequence[str]) -> list[str]:
    """Return names with -1, -2, ... behind those of several files."""
    total = Counter(names)
    counted: Counter[str] = Counter()
    unique = []
    for name in names:
        counted[name] += 1
        unique.append(f"{name}-{counted[name]}" if total[name] > 1 else name)
    return unique
