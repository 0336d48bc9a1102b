"""A structure and its attention as the viewer of the report draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import Element

from matattn.attention import AttentionRecord
from matattn.structures.neighbors import SELF

MOST_EDGES = 400  # of a structure, drawn and stored: the strongest in any head
_COLORS = {
    "H": "#f5f5f5", "C": "#909090", "N": "#4a62e8", "O": "#e8301c", "F": "#8fdc50",
    "S": "#f0d733", "Cl": "#2fdc2f", "Na": "#a05cec", "Mg": "#7ae000", "Si": "#e6c39d",
    "P": "#f08000", "Ti": "#b5b8bd", "Fe": "#d96433", "Ga": "#b98b8b", "As": "#b47fdb",
    "Sr": "#00dc00",
}  # fmt: skip


def strongest(record: AttentionRecord) -> np.ndarray:
    """Return which edges of a record are stored.

    ``MOST_EDGES`` of those that have a length, by their largest weight in any layer and head.
    """
    weight = record.weight.max((0, 1))
    weight = np.where(record.length >= SELF, weight, -1)
    chosen = np.argsort(-weight, kind="stable")[:MOST_EDGES]
    return np.sort(chosen[weight[chosen] > 0])


def scene(
    name: str, described: str, item: Mapping[str, Any], record: AttentionRecord
) -> dict[str, Any]:
    """Return a structure (keys z, pos, cell) as the viewer draws it, in plain values."""
    pos, cell = item["pos"].double().numpy(), item["cell"][0].double().numpy()
    chosen = strongest(record)
    edges = []
    for edge in chosen:
        target, source = int(record.target[edge]), int(record.source[edge])
        shift = record.image[edge] if record.image is not None else np.zeros(3)
        at = pos[source] + shift @ cell
        edges.append(
            {"target": target, "source": source, "at": _rounded(at), "image": bool(shift.any())}
        )
    corners, frame = [], []
    if cell.any():
        steps = np.array(list(np.ndindex(2, 2, 2)))
        corners = [_rounded(corner) for corner in steps @ cell]
        frame = [
            [int(a), int(b)] for a in range(8) for b in range(a + 1, 8)
            if np.abs(steps[a] - steps[b]).sum() == 1
        ]  # fmt: skip
    return {
        "name": name,
        "described": described,
        "atoms": [_atom(z, at) for z, at in zip(item["z"].tolist(), pos, strict=True)],
        "edges": edges,
        "corners": corners,
        "frame": frame,
        "weight": np.round(record.weight[..., chosen], 4).tolist(),
    }


def _atom(z: int, at: np.ndarray) -> dict[str, Any]:
    """Return an atom as the viewer draws it."""
    element = Element.from_Z(z)
    color = _COLORS.get(element.symbol, f"hsl({z * 137 % 360},55%,60%)")
    radius = 0.35 * float(element.atomic_radius or 1.5)
    return {"symbol": element.symbol, "at": _rounded(at), "color": color, "radius": radius}


def _rounded(point: np.ndarray) -> list[float]:
    """Return a point in Å as a page stores it."""
    return [round(float(x), 4) for x in point]
