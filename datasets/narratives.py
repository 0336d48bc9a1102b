"""Narratives: short English texts about the crystals of ``prototypes``, written by templates.

They need no file and no network. The templates know where they put names and formulas, so the texts
come with labels. Since nobody wrote them, scores on them only show that the machinery works.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from pymatgen.core import Composition, Element

from matattn.datasets.prototypes import Row, composition_split, read_table
from matattn.text import Sentence, Span, TextDataset, split_words

NOTE = (
    "narratives are written by templates, from crystals whose properties CHGNet 0.3.0 predicted: "
    "scores on them show that the machinery works, and compare with nothing published."
)
_IDES = {
    "H": "hydride", "B": "boride", "C": "carbide", "N": "nitride", "O": "oxide", "F": "fluoride",
    "Si": "silicide", "P": "phosphide", "S": "sulfide", "Cl": "chloride", "Ge": "germanide",
    "As": "arsenide", "Se": "selenide", "Br": "bromide", "Sn": "stannide", "Sb": "antimonide",
    "Te": "telluride", "I": "iodide", "Bi": "bismuthide",
}  # fmt: skip
# {n} is the material's name, {f} its formula, {e} one of its elements.
_TEMPLATES = (
    "{n} ( {f} ) crystallizes in the {p} structure with a volume of {v} Å3 per atom .",
    "Powders of {n} were annealed at {t} °C for {h} h and quenched to room temperature .",
    "The formation energy of {f} is {e} eV / atom , and its bulk modulus is {k} GPa .",
    "Thin films of {f} were deposited on a substrate of {o} by magnetron sputtering .",
    "We prepared {n} from high purity {x} by solid state reaction under flowing gas .",
    "First principles calculations show that {f} is {s} than {g} in the same structure .",
    "X-ray diffraction of the sample at {t} K shows single phase {n} without impurities .",
    "Doping {f} with {x} changes the lattice parameter by less than {h} percent .",
    "Compared with {o} , the {p} phase of {n} has a {c} compressibility .",
    "The cell of {f} was relaxed until forces were below 0.01 eV / Å , as for {g} .",
)


def load(name: str, sentences_per_crystal: int = 3, seed: int = 0) -> TextDataset:
    """Write sentences about 5,464 crystals, split by their elements.

    So no formula or name of the test sentences occurs in the training sentences, except names of
    elements. The corpus is the text of the training crystals. ``sentences_per_crystal`` templates
    are drawn for each crystal with ``seed``.
    """
    rows = read_table()
    generator = np.random.default_rng(seed)
    split = {row.id: composition_split(material_name(_formula(row))) for row in rows}
    peers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        peers[split[row.id]].append(row)
    sentences = []
    for row in rows:
        indices = generator.choice(len(_TEMPLATES), sentences_per_crystal, replace=False)
        for index in indices:
            words, spans = _fill(_TEMPLATES[index], row, peers[split[row.id]], generator)
            sentences.append(Sentence(words, spans, split[row.id], row.id))
    corpus = [" ".join(s.words) for s in sentences if s.split == "train"]
    return TextDataset(name, corpus, sentences, ("name", "formula"), NOTE)


def material_name(formula: str) -> str:
    """Return an English name, such as "gallium arsenide" or "strontium titanium oxide"."""
    elements = sorted(Composition(formula).elements, key=lambda element: element.X or 0.0)
    names = [element.long_name.lower() for element in elements]
    if len(elements) > 1 and elements[-1].symbol in _IDES:
        names[-1] = _IDES[elements[-1].symbol]
    return " ".join(names)


def _formula(row: Row) -> str:
    """Return the usual formula: SrTiO3, where ``reduced_formula`` has O3Sr1Ti1."""
    return Composition(row.reduced_formula).reduced_formula


def _fill(
    template: str, row: Row, peers: list[Row], generator: np.random.Generator
) -> tuple[tuple[str, ...], tuple[Span, ...]]:
    """Fill a template with words and spans; ``peers`` are the other materials it may mention."""
    other, third = (peers[int(n)] for n in generator.integers(len(peers), size=2))
    element = Element(row.elements[int(generator.integers(len(row.elements)))])
    materials = {
        "{n}": (material_name(_formula(row)), "name"),
        "{f}": (_formula(row), "formula"),
        "{o}": (material_name(_formula(other)), "name"),
        "{g}": (_formula(third), "formula"),
        "{x}": (element.long_name.lower(), "name"),
    }
    plain = {
        "{p}": row.prototype.replace("_", " "),
        "{v}": f"{row.volume:.1f}",
        "{e}": f"{row.formation_energy_per_atom:.2f}",
        "{k}": f"{row.bulk_modulus:.0f}",
        "{t}": str(int(generator.integers(20, 160)) * 10),
        "{h}": str(int(generator.integers(1, 73))),
        "{s}": ("more stable", "less stable")[int(generator.integers(2))],
        "{c}": ("larger", "smaller")[int(generator.integers(2))],
    }
    words: list[str] = []
    spans: list[Span] = []
    for slot in template.split():
        text, kind = materials.get(slot, (plain.get(slot, slot), ""))
        new_words = [word for word, _, _ in split_words(text)]
        if kind:
            spans.append((len(words), len(words) + len(new_words), kind))
        words += new_words
    return tuple(words), tuple(spans)
