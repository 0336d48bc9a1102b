"""Constants of the elements, and errors in their units."""

import numpy as np
import pytest

from matattn.potentials.dataset import Frame
from matattn.workflows.potentials.errors import constants_of, labels_of


def frame(numbers, energy, forces=1.0, cell=10.0):
    z = np.array(numbers)
    return Frame("a", z, np.zeros((len(z), 3)), cell * np.eye(3), energy,
                 np.full((len(z), 3), forces), np.full((3, 3), np.nan))  # fmt: skip


def test_constants_are_fitted():
    found = constants_of([frame([1, 1], -2.0), frame([1, 8], -6.0, forces=-1.0)])
    assert found.alone[1] == pytest.approx(-1) and found.alone[8] == pytest.approx(-5)
    assert found.scale == 1 and not found.alone[2:8].any() and not found.binding.any()


def test_lone_atoms_have_their_own():
    lone = frame([8], -7.0, forces=0.0, cell=0.0)
    molecules = [frame([1, 8], -9.5), frame([1, 1, 8], -11.0)]
    found = constants_of([lone, *molecules])
    assert found.alone[8] == -7 and found.binding[8] == pytest.approx(-1)
    assert found.alone[1] == pytest.approx(-1.5) and found.binding[1] == 0
    in_a_cell = frame([8], -8.0)  # a crystal of one atom is no lone atom
    assert constants_of([in_a_cell]).alone[8] == pytest.approx(-8)
    assert constants_of([in_a_cell, lone]).alone[8] == -7
    assert constants_of([lone]).alone[8] == -7 and constants_of([lone]).scale == 1


def test_without_forces_the_scale_is_that_of_the_energies():
    unknown = [frame([1], energy, forces=np.nan) for energy in (-1.0, -3.0)]
    found = constants_of(unknown)
    assert found.alone[1] == pytest.approx(-2) and found.scale == pytest.approx(1)


def test_labels_that_are_there():
    assert labels_of([frame([1], np.nan, forces=0.0)]) == ["forces"]
    assert labels_of([frame([1], -1.0, forces=np.nan), frame([1], np.nan)]) == [
        "energy_per_atom", "forces"
    ]  # fmt: skip
    assert labels_of([]) == []
