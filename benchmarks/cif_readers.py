"""CIF readers on 10,000 generated files whose crystals are known, and on ordinary files.

    python benchmarks/cif_readers.py [-o benchmarks/results/cif_readers.csv]

Crystals of all 530 settings of the space groups, from spglib's tables, are written in every way
that a file can tell its symmetry, and in formats as users have them (the corpus of
tests/core/structures/formats/test_cif_corpus.py). Counted is what each reader makes of them: the
crystal, a refusal, another crystal with a doubt (only matattn tells any), or another crystal
without a word.

Speed: 1,000 ordinary crystals of the prototypes, half of them with the operations of their space
group and half as whole cells, as pymatgen writes them. All readers read the same files in one run,
on one core; processor time. Floor: reading the text of the files, and making the structures.
"""

from __future__ import annotations

import argparse
import io
import runpy
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase.io.cif import read_cif
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser, CifWriter

from matattn.datasets import prototypes
from matattn.errors import StructureError
from matattn.structures.formats.cif import parse_text
from matattn.structures.remarks import doubts_of
from matattn.tables import write_table

CORPUS = Path(__file__).parents[1] / "tests/core/structures/formats/test_cif_corpus.py"
FILES = 1000
OUTCOMES = ("the crystal", "refused", "another, doubted", "another, silent")


def by_matattn(text: str) -> Structure:
    ((_, _, structure),) = parse_text(text, "x.cif")
    if isinstance(structure, StructureError):
        raise structure
    return structure


def by_pymatgen(text: str) -> Structure:
    parser = CifParser.from_str(text, occupancy_tolerance=1.01)
    return parser.parse_structures(primitive=False)[0]


def by_ase(text: str) -> Structure:
    atoms = read_cif(io.StringIO(text), index=0)
    return Structure(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions())


READERS: dict[str, Callable[[str], Structure]] = {
    "matattn": by_matattn,
    "pymatgen": by_pymatgen,
    "ASE": by_ase,
}


def outcome(corpus: dict, read: Callable[[str], Structure], text: str, crystal: object) -> str:
    """Return what a reader makes of a file."""
    try:
        structure = read(text)
    except Exception:  # readers raise anything
        return "refused"
    if corpus["is_same"](structure, crystal):
        return "the crystal"
    return "another, doubted" if doubts_of(structure) else "another, silent"


def count(corpus: dict) -> list[dict[str, object]]:
    """Return a row for each kind of file and reader."""
    rows = []
    broken = set(corpus["BROKEN"])
    for kind, write in (corpus["KINDS"] | corpus["BROKEN"]).items():
        results: dict[str, Counter[str]] = {name: Counter() for name in READERS}
        for hall in range(1, 531):
            crystal = corpus["crystal"](hall)
            if kind in broken and len(crystal.rotations) < 3:
                continue
            if corpus["is_untold"](kind, crystal):
                continue
            text = write(crystal)
            for name, read in READERS.items():
                result = outcome(corpus, read, text, crystal)
                if kind in broken and result == "the crystal":
                    result = "another, silent"  # a contradiction without a word
                results[name][result] += 1
        for name, counts in results.items():
            rows.append({"kind": kind, "reader": name, "files": counts.total(), **counts})
            print(rows[-1], flush=True)
    return rows


def speed() -> list[dict[str, object]]:
    """Return a row for each reader: files per second of processor time."""
    items = prototypes.load(["formation_energy_per_atom"]).items
    chosen = np.random.default_rng(0).permutation(len(items))[:FILES]
    texts = []
    for number, index in enumerate(chosen):
        item = items[index]
        structure = Structure(item.cell[0].double().numpy(), item.z.tolist(),
                              item.pos.double().numpy(), coords_are_cartesian=True)  # fmt: skip
        texts.append(str(CifWriter(structure, symprec=0.01 if number % 2 else None)))
    rows = []
    for name, read in READERS.items():
        begin = time.process_time()
        failed = sum(1 for text in texts if not _reads(read, text))
        seconds = time.process_time() - begin
        rows.append(
            {"kind": "ordinary files", "reader": name, "files": FILES, "refused": failed,
             "files_per_second": FILES / seconds}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _reads(read: Callable[[str], Structure], text: str) -> bool:
    try:
        return len(read(text)) > 0
    except Exception:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = speed() + count(runpy.run_path(str(CORPUS)))
    for name in READERS:
        own = [row for row in rows if row["reader"] == name and "files_per_second" not in row]
        total = {key: sum(row.get(key, 0) for row in own)  # type: ignore[misc, arg-type]
                 for key in ("files", *OUTCOMES)}  # fmt: skip
        rows.append({"kind": "all", "reader": name, **total})
        print(rows[-1])
    if arguments.output:
        columns = ("kind", "reader", "files", *OUTCOMES, "files_per_second")
        write_table(arguments.output, [{c: row.get(c) for c in columns} for row in rows])


if __name__ == "__main__":
    main()
