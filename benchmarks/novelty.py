"""Does ``ood_score`` rank far structures above ordinary ones?

    MATATTN_DATA=... python benchmarks/novelty.py [MODEL ...] [--output benchmarks/results]

For every shipped model, the area under the ROC curve (AUROC: the chance that a random far structure
scores higher than a random validation crystal; 0.5 is guessing) for four kinds of far structures:
validation crystals with all distances stretched by 15 % or compressed by 12 %, with their elements
shuffled among the sites, and made-up cubic perovskites (``perov5``, mostly of elements that do not
go together). Also the share of each that ``ood_flag`` marks.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from matattn import pretrained
from matattn.datasets import crystals
from matattn.files import write_text
from matattn.runtime import tune_malloc
from matattn.workflows.structures.predict import Predictor, encode

Item = dict[str, torch.Tensor]
COUNT = 600  # structures of each kind


def stretched(factor: float) -> Callable[[Item], Item]:
    return lambda item: item | {"pos": item["pos"] * factor, "cell": item["cell"] * factor}


def shuffled(item: Item) -> Item:
    generator = torch.Generator().manual_seed(len(item["z"]))
    return item | {"z": item["z"][torch.randperm(len(item["z"]), generator=generator)]}


def items(name: str, file: str, target: str, split: str) -> list[Item]:
    path = Path(os.environ["MATATTN_DATA"]) / "crystals" / file
    data = crystals.load(name, str(path), [target], split="official")
    rows = np.random.default_rng(0).permutation(data.rows(split))[:COUNT]
    return [{key: data.items[row][key] for key in ("z", "pos", "cell")} for row in rows]


def auroc(ordinary: np.ndarray, far: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([ordinary, far]))[len(ordinary) :]
    return float((ranks.sum() - len(far) * (len(far) + 1) / 2) / (len(ordinary) * len(far)))


def rows_of(model: str, ordinary: Sequence[Item], far: dict[str, list[Item]]) -> list[dict]:
    predictor = Predictor.load(model)
    assert predictor.uncertainty is not None

    def score(given: Sequence[Item]) -> np.ndarray:
        features = encode(predictor.network, given)
        return predictor.uncertainty.novelty(features).numpy()

    base = score(ordinary)
    table: list[dict[str, Any]] = [
        {"model": model, "structures": "validation rows", "flagged": (base > 1).mean()}
    ]
    for name, given in far.items():
        found = score(given)
        table.append(
            {
                "model": model,
                "structures": name,
                "auroc": auroc(base, found),
                "flagged": (found > 1).mean(),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=pretrained.names("structures"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    tune_malloc()
    ordinary = items("mp2018_subset", "mp2018.jsonl.gz", "e_form", "val")
    far = {
        "stretched by 15 %": list(map(stretched(1.15), ordinary)),
        "compressed by 12 %": list(map(stretched(0.88), ordinary)),
        "elements shuffled": [shuffled(i) for i in ordinary if len(i["z"].unique()) > 1],
        "made-up perovskites": items("perov5", "perov5.jsonl.gz", "e_form", "test"),
    }
    table = [row for model in given.models for row in rows_of(model, ordinary, far)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["model", "structures", "auroc", "flagged"], lineterminator="\n")
    writer.writeheader()
    for row in table:
        shown = {key: f"{v:.3f}" if isinstance(v, float) else v for key, v in row.items()}
        writer.writerow(shown)
    write_text(given.output / "novelty.csv", text.getvalue())
    print(text.getvalue())


if __name__ == "__main__":
    main()
