"""The pool of the screening benchmark."""

import importlib
import itertools
from pathlib import Path

import pytest

from matattn.structures.formats.pymatgen_json import from_json
from matattn.structures.structure import validate


@pytest.fixture
def screening(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("screening")


def test_its_crystals_have_the_sizes_it_says_and_can_be_read(screening):
    rows = list(itertools.islice(screening.crystals(100), 50))
    assert [row["id"] for row in rows] == [f"s{n}" for n in range(50)]
    assert {screening.FEWEST <= len(row["Z"]) <= screening.MOST for row in rows} == {True}
    for row in rows:
        validate(from_json(row), row["id"])


def test_it_is_the_same_pool_every_time(screening):
    one, two = (list(itertools.islice(screening.crystals(10), 5)) for _ in range(2))
    assert one == two
