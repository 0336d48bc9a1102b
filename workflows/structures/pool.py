"""Structures with their features, to choose from: the nearest to another, the next to label."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.errors import BundleError, DataError, MatattnError
from matattn.structures.stream import StructureStream, find_sources
from matattn.tables import Row
from matattn.workflows.structures import training_rows
from matattn.workflows.structures.predict import Predictor
from matattn.workflows.structures.screen import Screening

_NAMES = ("id", "path", "formula")
_AT_ONCE = 20_000  # rows whose distances are made together
_IN_CACHE = 2_000  # rows whose components are


@dataclass(frozen=True)
class Pool:
    """Names (id, path, formula) and features [n, F] of structures; ``left_out`` had none.

    Of training rows only ``components`` [n, K] are known, in which distances are measured.
    """

    names: Sequence[Row]
    features: Tensor
    left_out: int
    components: Tensor | None = None

    @classmethod
    def read(
        cls,
        predictor: Predictor,
        fingerprint: str,
        inputs: Sequence[str],
        advance: Callable[[int], Any] = lambda structures: None,
    ) -> Pool:
        """Read features that ``matattn embed`` wrote (.npz), or make those of structures.

        ``fingerprint`` is that of the model. Raises DataError for features of another model, and
        MatattnError when nothing has features.
        """
        if len(inputs) == 1 and inputs[0].lower().endswith(".npz"):
            pool = _stored(Path(inputs[0]), fingerprint)
        else:
            with StructureStream(find_sources(inputs)) as stream:
                screening = Screening(predictor, stream, embed=True)
                screening.run(advance)
            usable = [row for row in screening.rows if row["features"] is not None]
            features = np.concatenate([row["features"] for row in usable] or [np.zeros((0, 1))])
            names = [{key: row[key] for key in _NAMES} for row in usable]
            pool = cls(names, torch.from_numpy(features), len(screening.rows) - len(usable))
        if not len(pool.names):
            raise MatattnError(f"{', '.join(inputs)}: holds no structure that the model can read")
        return pool

    @classmethod
    def of_training(cls, predictor: Predictor, folder: Path) -> Pool:
        """Return the training rows of a model that novelty is measured from, with their labels.

        Raises BundleError when the model in ``folder`` does not know them.
        """
        known = torch.empty(0, 0)
        if predictor.uncertainty is not None:
            known = predictor.uncertainty.distance.references.float()
        targets = [target["name"] for target in predictor.targets]
        names = training_rows.read(folder, targets, len(known))
        if names is None:
            raise BundleError(
                f"{folder}: does not know its training rows (no calibration, or an earlier "
                "version); give structures to search in"
            )
        return cls(names, known[:, :0], 0, known)

    def nearest(self, predictor: Predictor, query: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return distances [q, k] and indices [q, k] of the nearest structures, exactly.

        Distances are those of ``ood_score``, in standard deviations of the training rows; of a
        model that was not calibrated, in those of the features of the pool.
        """
        points = self.points(predictor)
        wanted = self.points(predictor, query)
        number = min(number, len(self.names))
        distances = torch.cat(
            [torch.cdist(wanted, part, compute_mode="donot_use_mm_for_euclid_dist")
             for part in points.split(_AT_ONCE)], dim=1,
        )  # fmt: skip
        found = distances.topk(number, largest=False, sorted=True)
        return found.values, found.indices

    def points(self, predictor: Predictor, features: Tensor | None = None) -> Tensor:
        """Return the components [n, K] in which distances are measured, of some or all features."""
        if features is None and self.components is not None:
            return self.components
        features = self.features if features is None else features
        if predictor.uncertainty is not None:
            components = predictor.uncertainty.distance.points
            return torch.cat([components(part) for part in features.split(_IN_CACHE)])
        return features / self.features.std(0, correction=0).clamp(min=1e-9)


def _stored(path: Path, fingerprint: str) -> Pool:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        features = arrays["features"]
        model = str(arrays["model"])
        columns = [arrays[key] for key in _NAMES]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: holds no features of `matattn embed`: {error}") from None
    if model != fingerprint:
        raise DataError(f"{path}: holds features of another model; make them anew: matattn embed")
    usable = np.isfinite(features).all(1)
    names = [
        dict(zip(_NAMES, map(str, values), strict=True))
        for values in zip(*(column[usable] for column in columns), strict=True)
    ]
    return Pool(names, torch.from_numpy(features[usable]), int((~usable).sum()))
