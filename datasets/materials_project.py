"""The Materials Project as it is today, through its own client ``mp-api``.

Jain et al., APL Materials 1, 011002 (2013); CC-BY 4.0. Values depend on the database version, which
is kept with the answer, and differ from those of the 2018 benchmark.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matattn.datasets.queries import answer
from matattn.datasets.structure_formats import pymatgen_row
from matattn.datasets.structures_io import Row, make_dataset
from matattn.errors import DataError, StructureError
from matattn.structures.dataset import PropertyDataset

# The database's names of properties, per atom in eV, and ours.
_FIELDS = {
    "formation_energy_per_atom": "formation_energy_per_atom",
    "energy_per_atom": "total_energy_per_atom",
    "energy_above_hull": "energy_above_hull",
    "band_gap": "band_gap",
}
_MODULI = {"bulk_modulus": "k_vrh", "shear_modulus": "g_vrh"}  # GPa; Voigt-Reuss-Hill


def load(
    name: str,
    path: str,
    query: Mapping[str, Any],
    targets: Sequence[str],
    split: str = "random",
    split_seed: int = 0,
    max_sites: int | None = None,
    note: str = "",
    download: bool = False,
) -> PropertyDataset:
    """Read the answer to a query; ``download`` asks for it if it is not in the folder ``path``.

    ``query`` holds arguments of ``mp_api``'s ``materials.summary.search``, for example
    ``{elements: [Li, O], num_sites: [1, 20]}``. The API key is read from ``MP_API_KEY``.
    The other arguments are those of ``matattn.datasets.crystals.load``.
    """
    command = f"MP_API_KEY=... python train.py data={name}"
    file, table = answer(path, {"materials_project": query}, lambda: _ask(query), command, download)
    version = (table.columns.get("database_version") or ["unknown"])[0]
    note = f"{note} Database version {version}, query {json.dumps(query)}."
    return make_dataset(
        name, file, table, targets, split, split_seed, max_sites=max_sites, note=note
    )


def _ask(query: Mapping[str, Any]) -> Iterator[Row]:
    key = os.environ.get("MP_API_KEY")
    if not key:
        raise DataError(
            "MP_API_KEY is not set; get a key at https://materialsproject.org/api and give it as "
            "an environment variable"
        )
    try:
        from mp_api.client import MPRester
    except ModuleNotFoundError:
        raise DataError("the Materials Project needs mp-api: pip install 'matattn[data]'") from None
    fields = ["material_id", "structure", *_FIELDS, *_MODULI]
    try:
        quiet = not sys.stderr.isatty()
        with MPRester(key, use_document_model=False, mute_progress_bars=quiet) as client:
            version = client.db_version
            entries = client.materials.summary.search(**query, fields=fields)
    except Exception as error:  # the client raises errors of several libraries
        reason = " ".join(str(error).replace(key, "MP_API_KEY").split())
        raise DataError(f"the Materials Project does not answer the query: {reason}") from None
    for entry in entries:
        yield _row(entry) | {"database_version": str(version)}


def _row(entry: Mapping[str, Any]) -> Row:
    identifier = str(entry["material_id"])
    numbers = {ours: entry.get(theirs) for theirs, ours in _FIELDS.items()}
    moduli = {ours: (entry.get(theirs) or {}).get("vrh") for theirs, ours in _MODULI.items()}
    structure = entry["structure"]
    structure = structure if isinstance(structure, Mapping) else structure.as_dict()
    try:
        crystal = pymatgen_row(structure, identifier)
    except (StructureError, KeyError, TypeError, ValueError) as error:
        crystal = {"problem": str(error)}
    return {"id": identifier, **crystal, **numbers, **moduli}
