"""The candidates of the data set ``prototypes``: compositions, and the structure types of each.

Every composition of a list goes into all structure types of its stoichiometry, so that a model has
to tell structures of one composition apart. Ionic lists are products of ions whose charges cancel,
intermetallic lists products of groups that form such phases. Long products are sampled with a fixed
seed, after the ``anchors``: well-known compounds that are always included.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

SEED = 20231114

Composition = tuple[str, ...]
Candidate = tuple[str, Composition]

HALOGENS = "F Cl Br I"
CHALCOGENS = "O S Se Te"
PNICTOGENS = "N P As Sb"
ALKALI = "Li Na K Rb Cs"
MONOVALENT = "Li Na K Rb Cs Cu Ag Tl"
DIVALENT = "Be Mg Ca Sr Ba Zn Cd Hg Mn Fe Co Ni Sn Pb"
TRIVALENT = "B Al Ga In Sc Y La Ce Nd Gd Lu Ti V Cr Fe Bi"
TETRAVALENT = "Ti Zr Hf V Nb Ta Mo W Re Ru Ir Pt Mn Sn Pb Si Ge Ce"
RARE_EARTHS = "Sc Y La Ce Nd Gd Er Lu"
EARLY_METALS = "Ti Zr Hf V Nb Ta Cr Mo W"
LATE_METALS = "Mn Fe Co Ni Cu Ru Rh Pd Ag Os Ir Pt Au Re"
TRANSITION_METALS = EARLY_METALS + " " + LATE_METALS
P_METALS = "Al Ga In Tl Sn Pb Bi"
METALS = (
    "Li Be Na Mg K Ca Rb Sr Cs Ba Sc Y La Ce Nd Gd Er Lu Ti V Cr Mn Fe Co Ni Cu Zn Zr Nb Mo Ru Rh "
    "Pd Ag Cd Hf Ta W Re Os Ir Pt Au Hg Al Ga In Tl Sn Pb Bi"
)


def candidates() -> list[Candidate]:
    """List all crystals to try, as (prototype, elements in site order), without duplicates.

    The order is shuffled (seeded), so that the first N candidates are a fair sample of the whole.
    """
    unique = list(dict.fromkeys(_all_families()))
    random.Random(SEED).shuffle(unique)
    return unique


def _all_families() -> Iterator[Candidate]:
    for family in (_elements, _binaries, _binary_metals, _ternary_metals, _ternary_salts, _layered):
        yield from family()


def _combine(*groups: str) -> list[Composition]:
    """Return products of groups of elements (strings of symbols) without repeated elements."""
    products = product(*(group.split() for group in groups))
    return [composition for composition in products if len(set(composition)) == len(groups)]


def _sample(
    key: str, compositions: Iterable[Composition], count: int, anchors: str = ""
) -> list[Composition]:
    """Return ``count`` compositions: the anchors (``Na-Cl Mg-O``), then a seeded draw."""
    first = [tuple(text.split("-")) for text in anchors.split()]
    rest = sorted(set(compositions) - set(first))
    draw = random.Random(f"{SEED} {key}").sample(rest, min(len(rest), count - len(first)))
    return first + draw


def _place(compositions: Sequence[Composition], *targets: str) -> Iterator[Candidate]:
    """Put every composition into every target, ``prototype`` or ``prototype:order``.

    ``order`` says which element goes on sites A, B, ...: ``perovskite:BAC`` swaps the cations.
    """
    for composition in compositions:
        for target in targets:
            prototype, _, order = target.partition(":")
            letters = order or "ABCDEFG"[: len(composition)]
            yield prototype, tuple(composition[ord(letter) - ord("A")] for letter in letters)


def _elements() -> Iterator[Candidate]:
    yield from _place(_combine(METALS), "fcc", "bcc", "hcp", "sc", "beta_tin")
    yield from _place(_combine("Si Ge Sn"), "diamond", "beta_tin", "fcc", "bcc", "hcp", "sc")
    yield from _place(_combine("As Sb Bi"), "arsenic", "sc", "bcc", "fcc")
    yield "diamond", ("C",)


def _binaries() -> Iterator[Candidate]:
    dense = ("rocksalt", "cesium_chloride", "zincblende", "wurtzite", "nickel_arsenide")
    salts = _combine(MONOVALENT, HALOGENS) + _combine(DIVALENT, CHALCOGENS)
    covalent = _combine(TRIVALENT, PNICTOGENS) + _combine(EARLY_METALS + " Si", "C")
    yield from _place(salts, *dense, "litharge")
    yield from _place(covalent, *dense, "tungsten_carbide")

    dihalides = _combine(DIVALENT.replace("Hg ", "") + " Ti V Cu", HALOGENS)
    dichalcogenides = _combine(TETRAVALENT, CHALCOGENS)
    anchors = "Ca-F Mg-F Ti-O Sn-O Zr-O Si-O Mo-S Ti-S Cd-I Mg-Cl Ba-F Sr-F Ce-O Hf-O"
    layered = ("cadmium_iodide", "cadmium_chloride", "molybdenite")
    yield from _place(
        _sample("AB2", dihalides + dichalcogenides, 100, anchors),
        *("fluorite", "rutile", "anatase", "cristobalite", *layered),
    )
    yield from _place(_combine("Mn Fe Co Ni Cu Zn Ru Pt", "S Se"), "pyrite")
    yield from _place(_combine("Fe Ru Os Ni Pt", "P As Sb"), "pyrite")
    suboxides = _combine(MONOVALENT, CHALCOGENS)
    yield from _place(
        suboxides, "fluorite:BA", "cuprite:BA", "cadmium_chloride:BA", "cadmium_iodide:BA"
    )
    zintl = _combine("Mg Ca Sr Ba", "Si Ge Sn Pb")
    yield from _place(zintl, "fluorite:BA", "nickel_indide:BA", "cadmium_chloride:BA")

    trihalides = _combine("Al Ga In Sc Y La Nd Gd Lu Bi Sb Ti V Cr Fe Rh", HALOGENS)
    trioxides = _combine("W Mo Re", "O S")
    yield from _place(
        _sample("AB3", trihalides + trioxides, 50, "Re-O W-O Al-F Sc-F Bi-F La-F"),
        *("rhenium_oxide", "bismuth_fluoride"),
    )
    pnictides = _combine(ALKALI + " Cu", PNICTOGENS + " Bi")
    yield from _place(
        _sample("A3B", pnictides, 24, "Li-N Na-As Li-Bi Cu-N"),
        *("lithium_nitride:BA", "sodium_arsenide:BA", "bismuth_fluoride:BA", "rhenium_oxide:BA"),
    )
    sesquioxides = _combine("Al Ga In Tl Sc Y La Ce Nd Gd Lu Ti V Cr Fe Rh Bi Sb As Mn", CHALCOGENS)
    yield from _place(
        _sample("A2B3", sesquioxides, 55, "Al-O Cr-O Fe-O Ga-O La-O Bi-Te Sb-Te Bi-Se"),
        *("corundum", "lanthanum_oxide", "tetradymite"),
    )
    inverse = _combine("Be Mg Ca Sr Zn Cd", "N P As Sb Bi")
    yield from _place(
        _sample("A3B2", inverse, 14, "Mg-Bi Mg-Sb"), "lanthanum_oxide:BA", "corundum:BA"
    )


def _binary_metals() -> Iterator[Candidate]:
    pairs = [pair for pair in _combine(METALS, METALS) if pair[0] < pair[1]]
    anchors = "Al-Ni Cu-Zn Au-Cu Fe-Pt Al-Ti Li-Mg Pd-Cu Cs-Au Al-Li Na-Tl Mg-Ag Al-Ru Hg-Mg"
    yield from _place(
        _sample("AB metals", pairs, 120, anchors),
        *("cesium_chloride", "copper_gold", "copper_platinum", "sodium_thallide"),
    )
    metalloid = _combine(TRANSITION_METALS, "Si Ge Sn Sb As Al Ga")
    yield from _place(
        _sample("AB metalloids", metalloid, 56, "Fe-Si Co-Si Mn-Si Ru-Al Co-Sb Ni-As Ni-Al"),
        *("iron_silicide", "nickel_arsenide", "cesium_chloride", "rocksalt"),
    )
    ordered = _combine(METALS, METALS)
    borides = _combine(EARLY_METALS + " Mg Al Sc Y", "B")
    silicides = _combine(TRANSITION_METALS + " Ca Sr Y La Ce", "Si Ge")
    anchors = "Mg-Cu Ca-Al Zr-V Y-Al Mg-Zn Mo-Si W-Si Mg-B Ti-B Zr-B In-Ni"
    yield from _place(
        _sample("AB2 metals", ordered, 72, anchors) + _sample("AB2 X", borides + silicides, 32),
        *("laves", "aluminium_diboride", "molybdenum_silicide", "nickel_indide"),
    )
    anchors = "Al-Ni Au-Cu Ti-Al Zr-Al Sn-Nb Al-Fe Si-Fe Sn-Ni Mg-Cd Sn-Ca"
    yield from _place(
        _sample("AB3 metals", ordered + _combine("Si Ge Sb", TRANSITION_METALS), 110, anchors),
        *("copper3_gold", "aluminium3_titanium", "bismuth_fluoride", "nickel3_tin"),
    )
    yield from _place(
        _sample("A15", _combine("Al Ga In Si Ge Sn Pt Os Ir Au", EARLY_METALS), 34, "Sn-Nb Si-Cr"),
        "chromium3_silicon",
    )
    yield from _place(_combine("Ca Sr Ba La Ce Nd", "Al Ga Zn In"), "barium_aluminide")
    cacu5 = _combine("Ca Sr Y La Ce Nd Gd", "Ni Co Cu Zn Pt Rh Pd Ag")
    yield from _place(_sample("CaCu5", cacu5, 36, "Ca-Cu La-Ni"), "calcium_copper5")
    yield from _place(_combine("Ca Sr Ba Sc Y La Ce Nd Gd Lu K", "B"), "calcium_boride")


def _ternary_metals() -> Iterator[Candidate]:
    eight_electrons = _combine("Li Na K Cu Ag", "Mg Zn Cd Ca Be", PNICTOGENS + " Bi")
    eighteen_electrons = (
        _combine("Ti Zr Hf", "Sn Ge Si Pb", "Ni Pd Pt")
        + _combine("Ti Zr Hf", "Sb Bi", "Co Rh Ir")
        + _combine("V Nb Ta", "Sb Sn", "Fe Ru Co")
        + _combine(RARE_EARTHS, "Sb Bi", "Ni Pd Pt")
    )
    half_heuslers = _sample("ABC 8", eight_electrons, 32, "Li-Mg-N Li-Zn-P Li-Zn-As")
    half_heuslers += _sample("ABC 18", eighteen_electrons, 44, "Ti-Sn-Ni Zr-Sn-Ni Nb-Sb-Fe")
    yield from _place(
        half_heuslers,
        *("half_heusler", "half_heusler:ACB", "zirconium_beryllium_silicide"),
    )
    heuslers = _combine(
        "Mn Fe Co Ni Cu Ru Rh Pd Ag Ir Pt Au Li",
        "Ti V Cr Mn Fe Zr Hf Nb Ta Sc Y La Lu Mg",
        "Al Ga In Si Ge Sn Sb Zn",
    )
    yield from _place(
        _sample("A2BC", heuslers, 105, "Cu-Mn-Al Co-Mn-Si Fe-V-Al Ni-Mn-Ga Co-Ti-Al"),
        *("heusler", "inverse_heusler"),
    )
    metallic = _combine("Mn Fe Co Ni Cr", "Al Ga In Zn Sn Ge Pt Cu", "N C")
    salts = _combine("Ca Sr Ba Mg", "Sn Pb Ge Si", "O") + _combine(
        "Ca Sr Ba Mg", PNICTOGENS, "N Bi"
    )
    lithium = _combine("Li Na K", "F Cl Br I", "O S")
    antiperovskites = _sample("anti", metallic + salts, 34, "Ca-Sn-O Mn-Ga-N Fe-Al-C Ca-As-N")
    antiperovskites += _sample("anti Li", lithium, 12, "Li-Cl-O Li-Br-O")
    yield from _place(antiperovskites, "perovskite:BCA")


def _ternary_salts() -> Iterator[Candidate]:
    perovskites = (
        _combine("Na K Rb Cs Tl Ag", "Mg Ca Zn Cd Mn Fe Co Ni Pb Sn Ge Sr", HALOGENS)
        + _combine("Ca Sr Ba Pb Cd", "Ti Zr Hf Sn Ge Mn Fe Mo Ru V Nb Ce", "O S Se")
        + _combine("Li Na K Rb Ag", "Nb Ta W V Re", "O")
        + _combine("La Y Nd Gd Bi", "Al Ga Sc Ti V Cr Mn Fe Co Ni Lu Rh", "O")
    )
    anchors = (
        "Sr-Ti-O Ba-Ti-O Ca-Ti-O K-Nb-O La-Al-O Na-Mg-F Cs-Pb-I Cs-Sn-Br K-Mg-F Ba-Zr-O Ba-Ni-O"
    )
    yield from _place(
        _sample("ABX3", perovskites, 96, anchors),
        *("perovskite", "perovskite:BAC", "barium_nickelate"),
    )
    oxyanions = (
        _combine("Mg Ca Sr Ba Zn Cd Mn Fe Co Ni Pb", "C", "O")
        + _combine("Al Ga In Sc Y Lu La Fe V Cr Ti", "B", "O")
        + _combine("Li Na K Rb Ag", "N", "O")
    )
    yield from _place(oxyanions, "calcite", "perovskite")

    two_cations = _combine(MONOVALENT, "Al Ga In Sc Y La Ti V Cr Fe Co Ni Rh Bi", CHALCOGENS)
    ordered_pnictides = _combine("Be Mg Zn Cd", "Si Ge Sn", "N P As")
    anchors = "Li-Co-O Na-Fe-O Na-Cr-O Cu-Fe-S Cu-In-Se Cu-Al-O Ag-Ga-S Cu-Ga-Se Li-In-Se Li-Fe-O"
    yield from _place(
        _sample("ABX2", two_cations, 56, anchors)
        + _sample("AB pnictides", ordered_pnictides, 16, "Zn-Ge-P Zn-Sn-As Cd-Ge-As"),
        *("sodium_ferrite", "delafossite", "chalcopyrite", "lithium_ferrite"),
    )
    spinels = (
        _combine("Mg Zn Cd Mn Fe Co Ni Cu Ca", "Al Ga In Cr Fe V Ti Mn Co Rh", "O S Se")
        + _combine("Ti Ge Sn Si V", "Mg Zn Co Ni Fe Mn", "O")
        + _combine("Mg Mn Fe Co Ni Zn Cd Ca Sr", "Li Na K Rb Cs Tl", "F Cl")
        + _combine("Ni Cu Co Ti Mn Sn", "La Nd Sr Ba", "O")
    )
    anchors = (
        "Mg-Al-O Zn-Al-O Zn-Fe-O Mg-Cr-O Cd-In-S Ti-Mg-O Ni-K-F Mg-K-F Cu-La-O Ti-Sr-O Ni-La-O"
    )
    yield from _place(
        _sample("AB2X4", spinels, 84, anchors), "spinel", "potassium_nickel_fluoride:BAC"
    )
    hexahalides = _combine("K Rb Cs Tl Na", "Ti Zr Hf Sn Pt Pb Si Ge Te Ir Re Mo W Mn", HALOGENS)
    yield from _place(
        _sample("A2BX6", hexahalides, 52, "K-Pt-Cl Cs-Sn-I K-Si-F"), "potassium_chloroplatinate"
    )
    elpasolites = (
        _combine("K Rb Cs Tl", "Li Na K Ag Cu", "Al Ga In Sc Y La Gd Lu Bi Cr Fe Sb Ti", HALOGENS)
        + _combine("Ca Sr Ba", "Mg Zn Ca Mn Fe Co Ni", "Mo W Re Os", "O")
        + _combine("Sr Ba Ca", "Sc Y La Fe Cr In Ga", "Nb Ta Sb Ru", "O")
    )
    anchors = "K-Na-Al-F Cs-Ag-Bi-Br Sr-Fe-Mo-O Cs-Na-Y-Cl Cs-Ag-In-Cl"
    yield from _place(_sample("A2BCX6", elpasolites, 110, anchors), "elpasolite")
    zircons = (
        _combine("Sc Y La Ce Nd Gd Lu Bi", "V P As", "O")
        + _combine("Zr Hf Ce", "Si Ge", "O")
        + _combine("Ca Sr Ba", "W Mo Cr", "O")
    )
    yield from _place(_sample("ABX4", zircons, 30, "Zr-Si-O Y-V-O Y-P-O"), "zircon")
    yield from _place(_combine("Cu Ag", "V Nb Ta", "S Se Te"), "sulvanite")


def _layered() -> Iterator[Candidate]:
    fluorides = _combine("Ca Sr Ba Pb Cd", "F", "Cl Br I")
    oxyhalides = _combine("Bi La Ce Nd Gd Y", "O", "F Cl Br I")
    yield from _place(fluorides + oxyhalides, "matlockite")
    anchors = "Ba-Fe-As Ca-Fe-As La-Co-Si Sr-Ni-P Ca-Al-Si Ca-Mg-Bi K-Fe-Se"
    pnictides = _combine(
        "Ca Sr Ba La Ce Nd Y",
        "Mn Fe Co Ni Cu Zn Ru Rh Pd Ir Pt Ag Au Al Mg Cd",
        "Si Ge P As Sb",
    )
    yield from _place(
        _sample("AB2C2", pnictides, 62, anchors),
        *("thorium_chromium_silicide", "calcium_aluminium_silicide"),
    )
    max_phases = _combine("Ti V Cr Zr Nb Hf Ta Sc Mo", "Al Ga In Si Ge Sn P S As Pb Tl Cd", "C N")
    yield from _place(
        _sample("A2BC", max_phases, 56, "Ti-Al-C Cr-Al-C Ti-Al-N V-Al-C"), "max_phase"
    )
    oxypnictides = _combine("La Ce Nd Gd Y", "O", "Mn Fe Co Ni Zn", "P As Sb")
    oxychalcogenides = _combine("La Ce Nd Gd Y Bi", "O", "Cu Ag", "S Se Te")
    yield from _place(
        _sample("ABCD", oxypnictides + oxychalcogenides, 38, "La-O-Fe-As Bi-O-Cu-Se La-O-Cu-S"),
        "zirconium_copper_silicide_arsenide",
    )
