"""The best structures of a screening, without repetitions."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from matattn.workflows.screening import engine, hits
from matattn.workflows.screening.hits import Summary, same_crystals


def test_other_cells_of_a_crystal_are_recognised(finished):
    summary = hits.summarize(finished)
    assert (summary.rows, summary.with_values, summary.repeated) == (8, 6, 2)
    assert summary.original.tolist() == [0, 1, 0, 3, 4, 5, 1, 7]


def test_the_best_come_first_and_once(finished):
    rows = hits.table(finished, hits.summarize(finished), 10)
    assert {row["id"] for row in rows} == {"NaCl", "MgO", "KCl", "wider MgO"}
    probabilities = [row["probability"] for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {row["id"]: row["repeated"] for row in rows}["NaCl"] == 1
    assert "fingerprint" not in rows[0]
    assert len(hits.table(finished, hits.summarize(finished), 2)) == 2


def test_the_expected_number_counts_a_crystal_once(finished):
    rows = hits.table(finished, hits.summarize(finished), 10)
    expected = sum(row["probability"] for row in rows)
    assert hits.summarize(finished).expected == pytest.approx(expected)


def test_the_plot_shows_values_intervals_and_ends(finished):
    rows = hits.table(finished, hits.summarize(finished), 10)
    (axis,) = hits.plot(finished, rows).axes
    assert "band_gap, eV" in axis.get_xlabel()
    assert sorted(axis.lines[0].get_xdata()) == pytest.approx(sorted(r["band_gap"] for r in rows))


def test_only_the_same_formula_and_fingerprint_are_one_crystal():
    points = np.array([[0.0, 1], [5, 1], [0, 1], [0, 1], [np.nan, 1], [np.nan, 1], [0, 9]])
    formulas = np.array([0, 0, 1, 0, 0, 0, 0])
    found = same_crystals(formulas, points.astype(np.float32))
    assert found.tolist() == [0, 1, 2, 0, 4, 5, 6]


def test_a_row_of_neighbours_is_no_chain():
    """Each is near the next, and the last is far from the first."""
    points = np.stack([np.linspace(0, 1, 5000), np.ones(5000)], 1)
    found = same_crystals(np.zeros(5000, int), points)
    assert len(set(found)) > 900


def test_two_cells_are_found_alone():
    points = np.array([[1.0, 2], [1.000001, 2.000002]])
    assert same_crystals(np.zeros(2, int), points).tolist() == [0, 0]


def test_a_screening_with_a_missing_part_is_not_complete(plan, here):
    with plan.claim():
        engine.run(plan, here)
    assert hits.is_complete(plan)
    plan.part(1).unlink()
    assert not hits.is_complete(plan)


def test_nothing_known_is_nothing_repeated():
    assert same_crystals(np.zeros(2, int), np.full((2, 4), np.nan)).tolist() == [0, 1]
    summary = Summary(2, 0, 0, np.arange(2), np.full(2, np.nan))
    assert summary.best(5).tolist() == [] and summary.expected == 0


def test_parts_carry_every_column(finished):
    names = pq.read_schema(hits.parts_of(finished)[0]).names
    assert names[:4] == ["id", "path", "formula", "natoms"]
    assert names[-2:] == ["status", "message"] and "probability" in names
