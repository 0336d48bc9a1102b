"""A pool of structures in one file, with repetitions and faults."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from matattn.workflows.screening.plan import Plan

MODEL = "mp-band-gap"


def row(name, a, z, repeats=1):
    """A crystal of the rock salt structure, or of cells of it beside each other, as a row."""
    frac = [[(n + x) / repeats, y, y] for n in range(repeats) for x, y in ((0, 0), (0.5, 0.5))]
    lattice = [[0, repeats * a / 2, repeats * a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]
    return {"id": name, "lattice": lattice, "Z": z * repeats, "frac": frac}


ROWS = [
    row("NaCl", 5.6, [11, 17]),
    row("MgO", 4.2, [12, 8]),
    row("doubled NaCl", 5.6, [11, 17], repeats=2),
    {"id": "flat", "lattice": [[0, 0, 0]] * 3, "Z": [3], "frac": [[0, 0, 0]]},
    row("KCl", 6.3, [19, 17]),
    row("reordered MgO", 4.2, [8, 12]),
    row("wider MgO", 4.3, [12, 8]),
]


@pytest.fixture
def pool(tmp_path):
    return write(tmp_path)


def write(folder):
    path = folder / "pool.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*lines[:4], "", "no json", *lines[4:]]))
    return path


@pytest.fixture
def plan(pool, tmp_path):
    return planned(tmp_path, pool)


def planned(folder, pool):
    return Plan(str(folder / "out"), (MODEL,), (str(pool),), ("band_gap in 2:6",), rows=3)


@pytest.fixture(scope="session")
def here():
    """Workers that are a thread of this process."""

    @contextmanager
    def executor():
        with ThreadPoolExecutor(1) as pool:
            yield pool, lambda: 1

    return executor


@pytest.fixture(scope="session")
def finished(tmp_path_factory, here):
    """A screening that has ended; to be read only."""
    from matattn.workflows.screening import engine

    folder = tmp_path_factory.mktemp("screened")
    plan = planned(folder, write(folder))
    with plan.claim():
        engine.run(plan, here)
    return plan
