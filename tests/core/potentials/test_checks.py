"""Labels that cannot be what they are said to be are refused, or doubted."""

import numpy as np
import pytest

from matattn.datasets import stillinger_weber
from matattn.errors import DataError
from matattn.potentials import sampling
from matattn.potentials.checks import check_frame, doubts_of
from matattn.potentials.dataset import Frame


def frame(identifier="a", **changes):
    pos, cell = stillinger_weber.crystal(1)
    values = {
        "id": identifier, "z": np.full(8, 14), "pos": pos, "cell": cell, "energy": -34.7,
        "forces": np.zeros((8, 3)), "stress": np.zeros((3, 3)),
    }  # fmt: skip
    return Frame(**values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": np.nan, "forces": np.full((8, 3), np.nan), "stress": np.full((3, 3), np.nan)},
         "has no energy, forces or stress"),
        ({"stress": 40 * np.eye(3)}, "is it in kBar or GPa"),
        ({"stress": np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0.0]])}, "not symmetric"),
        ({"cell": np.zeros((3, 3))}, "has a stress and no cell"),
        ({"forces": np.where(np.arange(24).reshape(8, 3) == 3, np.nan, 0.0)},
         "forces has values that are no numbers"),
        ({"energy": np.inf}, "energy has values that are no numbers"),
        ({"forces": np.full((8, 3), 5000.0)}, "a force of 5e\\+03 eV/Å"),
        ({"z": np.zeros(8, dtype=int)}, "no element"),
    ],
)  # fmt: skip
def test_a_frame_with_impossible_labels_is_refused(changes, message):
    with pytest.raises(DataError, match=f"^row 3: .*{message}"):
        check_frame(frame(**changes), "row 3")


def strained(count=24, sign=1, order=(0, 1, 2), per_atom=False):
    """Crystals under strain, with the exact stress of the model, or one in another convention."""
    generator, frames = np.random.default_rng(0), []
    for number in range(count):
        cells = 1 + number % 2
        crystal = stillinger_weber.silicon(*stillinger_weber.crystal(cells))
        _, pos, cell = atoms = sampling.strained(crystal, 0.02, generator)
        (made,) = sampling.labelled(stillinger_weber.LABELLER, [atoms], "strained", "train")
        rows, columns = [1, 0, 0], [2, 2, 1]
        stress = made.stress.copy()
        shears = made.stress[rows, columns][list(order)]
        stress[rows, columns], stress[columns, rows] = shears, shears
        energy = made.energy / len(made.z) if per_atom else made.energy
        # Internal shifts of the atoms leave forces, which a DFT's relaxed ones have not.
        rest = np.zeros_like(made.forces)
        frames.append(Frame(str(number), made.z, pos, cell, energy, rest, sign * stress))
    return frames


def test_right_labels_raise_no_doubt():
    assert doubts_of(strained()) == []


def test_what_all_frames_say_together():
    assert "is its sign that of VASP" in "".join(doubts_of(strained(sign=-1)))
    assert "seem to stand as" in "".join(doubts_of(strained(order=(2, 0, 1))))
    assert "are they per atom" in "".join(doubts_of(strained(per_atom=True)))


def test_forces_that_do_not_add_up_and_equal_frames_are_named():
    forces = np.zeros((8, 3))
    forces[2, 1] = 0.5
    assert doubts_of([frame("odd", forces=forces)])[0].startswith("odd: its forces do not add up")
    assert doubts_of([frame("one"), frame("two")]) == ["two: is the same structure as one"]
