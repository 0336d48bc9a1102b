"""The numbers by which the runs of a task are compared."""

import pytest

from matattn.workflows.task import TASKS


@pytest.mark.parametrize(
    "workflow, metrics, value",
    [
        ("property_prediction", {"test": {"a": {"mae": 2.0, "unit": "eV"}}}, 2.0),
        (
            "property_prediction",
            {"val": {"a": {"mae": 1.0, "baselines": {"mean": 2.0}},
                     "b": {"mae": 3.0, "baselines": {"mean": 4.0}}}},
            0.625,
        ),
        ("property_prediction", {"train": {"a": {"mae": 0.5, "unit": "eV"}}}, 0.5),
        ("field_surrogate", {"val": {"p": {"relative_l2": 0.2}, "q": {"relative_l2": 0.4}}}, 0.3),
        ("variational_monte_carlo", {"energies": {"fresh samples": {"mean": -0.5}}}, -0.5),
        ("tokenization", {"val": {"detector": {"span_f1": 0.7}}}, 0.3),
        ("language_model", {"test": {"all types": {"span_f1": 0.6}}}, 0.4),
    ],
)  # fmt: skip
def test_objective(workflow, metrics, value):
    assert TASKS[workflow].objective(metrics)[1] == pytest.approx(value)
