"""Sets of types for spans."""

import numpy as np
import pytest

from matattn.text_uncertainty import LabelSets


def made(count, seed, sharp=2.0):
    """Probabilities of five types, and true types drawn from softer ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, 5))
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    shown = np.exp(sharp * logits) / np.exp(sharp * logits).sum(1, keepdims=True)  # overconfident
    return shown, [int(generator.choice(5, p=row)) for row in soft]


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_sets_hold_the_true_type_as_often_as_promised(level):
    known = LabelSets.fit(*made(1000, 0))
    chances, true = made(4000, 1)
    inside = known.inside(chances, level)
    held = inside[np.arange(len(true)), true].mean()
    assert held == pytest.approx(level, abs=0.03)
    certain = (chances.argmax(1) == np.array(true)).mean()
    assert certain < level - 0.05  # the most probable type alone would not do
    assert 1 < inside.sum(1).mean() < 4


def test_the_most_probable_type_is_always_in_it():
    known = LabelSets.fit(np.eye(3)[[0, 1, 2] * 10], [0, 1, 2] * 10)  # always right, and certain
    chances = np.array([[0.4, 0.35, 0.25], [1.0, 0.0, 0.0]])
    assert known.inside(chances).tolist() == [[True, False, False]] * 2


def test_with_few_spans_every_type_is_possible():
    known = LabelSets.fit(*made(5, 2))
    assert known.inside(made(3, 3)[0]).all()


def test_it_survives_a_bundle():
    known = LabelSets.fit(*made(50, 4))
    again = LabelSets.from_parts(known.config(), known.tensors())
    chances = made(10, 5)[0]
    assert (again.inside(chances) == known.inside(chances)).all()
    with pytest.raises(KeyError, match="other"):
        LabelSets.from_parts({"method": "other"}, known.tensors())
