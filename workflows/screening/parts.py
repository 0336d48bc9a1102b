"""A part of a screening: so many pieces are parsed, predicted, and written as one Parquet file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from pyarrow import compute

from matattn import bundle, pretrained
from matattn.errors import BundleError, ConfigError
from matattn.files import atomic_path, encodable
from matattn.runtime import start_predicting
from matattn.structures.files import Entry
from matattn.tables import Row
from matattn.workflows.screening.criteria import Criterion
from matattn.workflows.screening.plan import Plan
from matattn.workflows.screening.sources import Piece
from matattn.workflows.structures.predict import Predictor

_NUMBERS = 4  # of a fingerprint
_MARK = b"matattn.screening"  # key in the metadata of a part


class Done(NamedTuple):
    """What is said of a finished part."""

    rows: int
    with_values: int


@lru_cache(maxsize=1)
def predictors(models: tuple[str, ...], sums: tuple[str, ...] = ()) -> Mapping[str, Predictor]:
    """Load the models, once in a process.

    ``sums`` are the fingerprints that their bundles must have: a worker elsewhere may have others.
    Raises BundleError for one without a value per structure, and ConfigError when two predict the
    same target, or one is given twice.
    """
    if twice := {model for model in models if models.count(model) > 1}:
        raise ConfigError(f"{twice.pop()}: is given twice")
    for model, expected in zip(models, sums, strict=False):
        if bundle.fingerprint(pretrained.find(model)) != expected:
            raise BundleError(
                f"{model}: this worker has another model than the screening began with"
            )
    loaded = {model: Predictor.load(model) for model in models}
    targets: dict[str, str] = {}
    for model, predictor in loaded.items():
        if predictor.network.level != "structure":
            raise BundleError(f"{model}: has a value per {predictor.network.level}, not structure")
        for target in predictor.targets:
            if (other := targets.setdefault(target["name"], model)) != model:
                raise ConfigError(f"{model} and {other} both predict {target['name']}; take one")
    return loaded


def start() -> None:
    """Prepare a process that makes parts: one thread, since there is a worker for each core."""
    start_predicting()
    torch.set_num_threads(1)


def make(plan: Plan, number: int, pieces: Sequence[Piece]) -> Done:
    """Predict the structures of pieces and write them as part ``number``; raises WriteError."""
    start()
    found = list(chain.from_iterable(piece.entries() for piece in pieces))
    table = pyarrow.Table.from_pylist(_rows(plan, found), schema(plan))
    path = plan.part(number)
    with atomic_path(path) as partial:
        pyarrow.parquet.write_table(table, partial)
    return _done(table)


def count(path: Path) -> Done:
    """Return what is said of a part from its file."""
    return _done(pyarrow.parquet.read_table(path, columns=["status"], memory_map=False))


def _done(table: pyarrow.Table) -> Done:
    return Done(len(table), with_values(table))


def with_values(table: pyarrow.Table) -> int:
    """Return how many rows of a part, or of several, have values."""
    return compute.sum(compute.equal(table["status"], "ok")).as_py() or 0


def is_finished(plan: Plan, number: int) -> bool:
    """Return whether a part is there, whole, and of this screening."""
    try:
        metadata = pyarrow.parquet.read_schema(plan.part(number)).metadata or {}
    except (OSError, pyarrow.ArrowException):
        return False
    return metadata.get(_MARK) == plan.fingerprint.encode()


def schema(plan: Plan) -> pyarrow.Schema:
    """Return the columns of a part: those of ``matattn predict``, and what a screening adds."""
    number, text = pyarrow.float64(), pyarrow.string()
    fields = [("id", text), ("path", text), ("formula", text), ("natoms", pyarrow.int64())]
    for predictor in predictors(plan.models, plan.sums).values():
        for target in predictor.targets:
            name = target["name"]
            fields += [(name, number), (f"{name}_lower", number), (f"{name}_upper", number)]
            fields += [(f"{name}_unit", text)]
    fields += [("interval_for", text), ("ood_score", number), ("ood_flag", pyarrow.bool_())]
    fields += [(column_of(criterion), number) for criterion in plan.criteria]
    if plan.where:
        fields += [("probability", number)]
    fields += [("fingerprint", pyarrow.list_(pyarrow.float32(), _NUMBERS))]
    fields += [("status", text), ("message", text)]
    return pyarrow.schema(fields, metadata={_MARK: plan.fingerprint.encode()})


def column_of(criterion: Criterion) -> str:
    """Return the name of the column with the probability of a criterion."""
    return f"probability of {criterion.text}"


def _rows(plan: Plan, found: Sequence[Entry]) -> list[Row]:
    structures, places = [e.structure for e in found], [e.place for e in found]
    rows: list[Row] = [{"id": encodable(e.id), "path": encodable(e.path)} for e in found]
    loaded = predictors(plan.models, plan.sums)
    for number, (model, predictor) in enumerate(loaded.items()):
        more = _More(predictor, plan.criteria, first=number == 0)
        answers = predictor.predict_with(structures, places, more)
        for row, answer in zip(rows, answers, strict=True):
            _join(row, answer, f"{model}: " if number else "")
    for row in rows:
        row["message"] = encodable(row["message"])
        if plan.where:
            factors = [row.get(column_of(criterion)) for criterion in plan.criteria]
            known = [factor for factor in factors if factor is not None]
            row["probability"] = math.prod(known) if len(known) == len(factors) else None
    return rows


def _join(row: Row, answer: Row, label: str) -> None:
    """Add what another model says of a structure: the worst of status and novelty counts."""
    if "status" in row:
        scores = [score for score in (row["ood_score"], answer["ood_score"]) if score is not None]
        answer["ood_score"] = max(scores, default=None)
        answer["ood_flag"] = answer["ood_flag"] or row["ood_flag"]
        words = [word for word in (row["interval_for"], answer["interval_for"]) if word]
        answer["interval_for"] = max(words, default=None)  # "new kinds" after "known kinds"
        if row["status"] != "ok":
            answer["status"] = row["status"]
        said = [row["message"]]
        if answer["message"] not in said:
            said.append(answer["message"] and label + answer["message"])
        answer["message"] = "; ".join(filter(None, said))
    row |= answer


class _More:
    """Columns from features: the criteria that a model can judge, and a crystal's fingerprint."""

    def __init__(self, predictor: Predictor, judged: Sequence[Criterion], first: bool) -> None:
        names = {target["name"] for target in predictor.targets}
        self.predictor, self.first = predictor, first
        self.judged = [criterion for criterion in judged if criterion.target in names]

    def __call__(self, features: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the columns [n] of features [n, F]."""
        columns = {column_of(c): c.probability(self.predictor, features) for c in self.judged}
        if self.first:
            columns["fingerprint"] = fingerprints(features)
        return columns


def fingerprints(features: torch.Tensor) -> np.ndarray:
    """Return a few numbers [n, K] that features [n, F] of the same crystal share.

    They are fixed combinations of the features with random signs, so that two crystals with the
    same numbers have, but for chance, the same features.
    """
    signs = torch.randn(features.shape[1], _NUMBERS, generator=torch.Generator().manual_seed(0))
    return (features.double() @ signs.double() / features.shape[1] ** 0.5).float().numpy()
