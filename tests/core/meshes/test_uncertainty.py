"""Intervals of predicted fields."""

import numpy as np
import pytest
import torch

from matattn.meshes.uncertainty import FieldUncertainty, Spread, rms, summary

TARGETS = 2


def made(count, seed, worse=1.0):
    """Predicted and true fields of ``count`` meshes, of sizes that differ by a factor of ten.

    Errors grow with the prediction, and the nodes of a mesh err together.
    """
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        nodes = int(generator.integers(200, 400))
        true = generator.random((nodes, TARGETS)) * [1.0, 50.0] * 10 ** generator.uniform(-0.5, 0.5)
        error = 0.1 * (0.2 + true / rms(true)) * generator.standard_normal((nodes, TARGETS))
        error = error * worse * np.exp(generator.normal(0, 0.5)) * rms(true)
        pairs.append((true + error, true))
    return pairs


@pytest.fixture(scope="module")
def known():
    return FieldUncertainty.fit(made(60, 1, 0.5), made(300, 2))


def shares(known, pairs):
    """Share of nodes, of whole fields, and of maxima in their intervals."""
    inside = []
    for predicted, true in pairs:
        error = np.abs(predicted - true)
        maximum = np.abs(summary("max", predicted) - summary("max", true))
        inside.append(
            (
                (error <= known.half_widths(predicted)).mean(),
                (error <= known.whole_half_widths(predicted)).all(0).mean(),
                (maximum <= known.summary_half_widths("max", predicted)).mean(),
            )
        )
    return np.mean(inside, axis=0)


def test_nine_of_ten_are_inside(known):
    """1,000 new meshes: three standard errors are about 0.05, with those of the calibration."""
    assert shares(known, made(1000, 3)) == pytest.approx([0.9, 0.9, 0.9], abs=0.05)


def test_other_meshes_are_not(known):
    assert (shares(known, made(200, 4, worse=3.0)) < 0.6).all()


def test_intervals_follow_size_and_unit(known):
    """They are wide where predictions are large, and ten times a field has ten times the width."""
    ((predicted, _),) = made(1, 5)
    widths = known.half_widths(predicted)
    order = predicted[:, 1].argsort()
    assert widths[order[-20:], 1].mean() > 1.5 * widths[order[:20], 1].mean()
    assert known.half_widths(10 * predicted) == pytest.approx(10 * widths)
    assert (known.whole_half_widths(predicted) > widths).all()


def test_higher_levels_are_wider(known):
    ((predicted, _),) = made(1, 6)
    narrow, wide = (known.half_widths(predicted, level) for level in (0.5, 0.95))
    assert (wide > narrow).all()
    assert np.isinf(known.half_widths(predicted, 0.999)).all()  # 300 samples cannot tell
    assert np.isinf(known.whole_half_widths(predicted, 0.999)).all()


def test_one_size_of_prediction_has_one_error():
    pairs = [(np.full((4, 1), 2.0), np.full((4, 1), 2.5))] * 30
    assert Spread.fit(pairs)(np.full((3, 1), 2.0)) == pytest.approx(np.full((3, 1), 0.5))
    assert FieldUncertainty.fit(pairs, pairs).half_widths(pairs[0][0]) == pytest.approx(
        np.full((4, 1), 0.5)
    )


def test_meshes_of_four_nodes_hold_as_much():
    """Quantiles between nodes would promise too little."""
    generator = np.random.default_rng(0)

    def tiny(count):
        true = generator.random((count, 4, 1)) + 1
        return list(zip(true + 0.1 * generator.standard_normal(true.shape), true, strict=True))

    known = FieldUncertainty.fit(tiny(200), tiny(1000))
    assert shares(known, tiny(4000))[0] == pytest.approx(0.9, abs=0.02)


def test_features_that_are_all_the_same_flag_what_is_not():
    same = torch.ones(30, 4)
    known = FieldUncertainty.fit(made(30, 8), made(30, 9), same, same)
    assert known.novelty(same[:1])[0] <= 1 < known.novelty(same[:1] + 5)[0]


def test_it_survives_a_bundle(known):
    """Also with features, whose far meshes are flagged."""
    generator = torch.Generator().manual_seed(0)
    train, calibration = (torch.randn(n, 6, generator=generator) for n in (60, 300))
    both = FieldUncertainty.fit(made(60, 1, 0.5), made(300, 2), train, calibration)
    near, far = calibration[:100] * 0.5, calibration[:100] + 30
    for one in (known, both):
        two = FieldUncertainty.from_parts(one.config(), one.tensors())
        ((predicted, _),) = made(1, 7)
        assert two.half_widths(predicted) == pytest.approx(one.half_widths(predicted), rel=1e-5)
        if one.distance is None:
            assert two.novelty(near) is None
        else:
            assert (two.novelty(far) > 1).all() and (two.novelty(near) < 1).all()
    with pytest.raises(KeyError, match="other"):
        FieldUncertainty.from_parts(known.config() | {"method": "other"}, known.tensors())
