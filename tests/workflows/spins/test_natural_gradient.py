"""The natural gradient, against stored and dense solutions."""

from pathlib import Path

import numpy as np

from matattn.workflows.spins.natural_gradient import natural_gradient

GOLDEN = Path(__file__).parents[2] / "golden" / "wavefunction"


def test_natural_gradient_is_the_golden_one_on_both_sides():
    golden = np.load(GOLDEN / "sr_golden.npz")
    derivatives = np.stack([golden["O"].real, golden["O"].imag], axis=1)
    weights = np.full(12, 1 / 12)
    for columns in (30, 10):  # more and fewer parameters than rows
        some = derivatives[..., :columns]
        found = natural_gradient(some, golden["Eloc"], weights, float(golden["diag_shift"])) / 2
        x = (some - some.mean(0)).reshape(-1, columns) / np.sqrt(12)
        local = (golden["Eloc"] - golden["Eloc"].mean()) / np.sqrt(12)
        f = np.stack([local.real, local.imag], axis=-1).ravel()
        matrix = x.T @ x + float(golden["diag_shift"]) * np.eye(columns)
        wanted = np.linalg.solve(matrix, x.T @ f)
        assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()
        if columns == 30:
            assert np.abs(found - golden["delta_theta"]).max() < 1e-10
