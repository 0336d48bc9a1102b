"""Any database that speaks OPTIMADE (https://optimade.org): AFLOW, Alexandria, OQMD, and others.

Andersen et al., Scientific Data 8, 217 (2021). The standard defines structures; properties are
fields of the database with a prefix, such as ``_oqmd_delta_e``. ``<base_url>/v1/info/structures``
lists them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urljoin

import numpy as np
from pymatgen.core import Element
from rich.console import Console

from matattn.datasets.queries import answer
from matattn.datasets.structures_io import Row, make_dataset
from matattn.download import get_json
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset

_STRUCTURE = ("lattice_vectors", "cartesian_site_positions", "species_at_sites", "species")


def load(
    name: str,
    path: str,
    base_url: str,
    filter: str,
    fields: Mapping[str, str],
    limit: int,
    targets: Sequence[str],
    split: str = "random",
    split_seed: int = 0,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
    download: bool = False,
) -> PropertyDataset:
    """Read the answer to a query; ``download`` asks for it if it is not in the folder ``path``.

    ``base_url`` is that of the database, as https://providers.optimade.org lists it. ``filter`` is
    in OPTIMADE's language, for example ``elements HAS "O" AND nsites<=20``. ``fields`` maps
    properties to the database's fields, which must be in matattn's units; a dot leads into a nested
    field. ``limit`` is the largest number of entries. The other arguments are those of
    ``matattn.datasets.crystals.load``.
    """
    request = {"base_url": base_url, "filter": filter, "fields": fields, "limit": limit}
    command = f"python train.py data={name}"
    file, table = answer(path, request, lambda: _ask(base_url, filter, fields, limit), command,
                         download)  # fmt: skip
    note = f"{note} Query {json.dumps(request)}, asked {(table.columns.get('asked') or ['?'])[0]}."
    return make_dataset(name, file, table, targets, split, split_seed, None, max_sites, units, note)


def _ask(base_url: str, filter: str, fields: Mapping[str, str], limit: int) -> Iterator[Row]:
    base = base_url.rstrip("/")
    if not re.search(r"/v\d[\d.]*$", base):
        base += "/v1"
    names = [*_STRUCTURE, *dict.fromkeys(field.split(".")[0] for field in fields.values())]
    query = {"filter": filter, "response_fields": ",".join(names), "page_limit": 100}
    url: str | None = f"{base}/structures?{urlencode(query)}"
    seen: set[str] = set()
    count = 0
    console = Console(stderr=True)
    with console.status("OPTIMADE") as status:
        while url and count < limit:
            if url in seen:
                raise DataError(f"{url}: this page links to itself or an earlier page")
            seen.add(url)
            page = get_json(url)
            try:
                entries = page["data"][: limit - count]
                asked = str(page["meta"].get("time_stamp", ""))
                rows = [_row(entry, fields) | {"asked": asked} for entry in entries]
                link = (page.get("links") or {}).get("next")
                link = link["href"] if isinstance(link, Mapping) else link
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{url}: not an OPTIMADE answer: {error!r}") from error
            yield from rows
            count += len(rows)
            status.update(f"OPTIMADE: {count} entries")
            url = urljoin(url, link) if link else None


def _row(entry: Mapping[str, Any], fields: Mapping[str, str]) -> Row:
    attributes = entry["attributes"]
    row = {"id": str(entry["id"])}
    row |= {name: _nested(attributes, field) for name, field in fields.items()}
    try:
        return row | _structure(attributes)
    except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        return row | {"problem": f"bad or missing value: {error}"}


def _nested(attributes: Any, field: str) -> Any:
    for key in field.split("."):
        attributes = attributes.get(key) if isinstance(attributes, Mapping) else None
    return attributes


def _structure(attributes: Mapping[str, Any]) -> Row:
    kinds = {kind["name"]: kind for kind in attributes["species"]}
    z = []
    for number, name in enumerate(attributes["species_at_sites"], start=1):
        kind = kinds[name]
        if len(kind["chemical_symbols"]) != 1 or kind["concentration"] != [1]:
            raise ValueError(f"site {number} ({name}) has partial occupancy")
        z.append(Element(kind["chemical_symbols"][0]).Z)
    lattice = np.array(attributes["lattice_vectors"], dtype=float)
    positions = np.array(attributes["cartesian_site_positions"], dtype=float)
    frac = positions @ np.linalg.inv(lattice)
    return {"lattice": lattice.tolist(), "Z": z, "frac": frac.tolist()}
