"""What a screening looks for."""

import math

import numpy as np
import pytest
import torch

from matattn.errors import ConfigError
from matattn.structures.files import entries
from matattn.workflows.screening import criteria
from matattn.workflows.screening.criteria import Criterion
from matattn.workflows.structures.predict import Predictor


@pytest.mark.parametrize(
    "text, expected",
    [
        ("band_gap in 1.1:1.7", ("band_gap", 1.1, 1.7)),
        ("band_gap in 1.1:", ("band_gap", 1.1, math.inf)),
        (" log10_k>2e0", ("log10_k", 2.0, math.inf)),
        ("e_form <= -0.5", ("e_form", -math.inf, -0.5)),
    ],
)
def test_criteria_are_read(text, expected):
    found = Criterion.parse(text)
    assert (found.target, found.low, found.high) == expected


def test_answers_of_a_classification_are_read():
    assert Criterion.parse("is_metal is True").truth is True
    assert Criterion.parse("is_metal is false").truth is False


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected 'TARGET in"),
        ("band_gap", "expected 'TARGET in"),
        ("band_gap in 1", "expected 'TARGET in"),
        ("band_gap in 1:2:3", "expected 'TARGET in"),
        ("band_gap in :", "expected 'TARGET in"),
        ("band_gap > x", "'x' is no number"),
        ("band_gap in 2:1", "2 is not below 1"),
        ("band_gap in nan:1", "'nan' is no number"),
        ("band_gap is maybe", "expected 'TARGET in"),
    ],
)
def test_what_is_no_criterion_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Criterion.parse(text)


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load("mp-band-gap")


@pytest.fixture
def features(predictor, pool):
    rows = predictor.embed([e.structure for e in entries(pool)])
    return torch.cat([torch.from_numpy(r["features"]) for r in rows if r["features"] is not None])


def test_an_unknown_target_is_refused(predictor):
    with pytest.raises(ConfigError, match="no model predicts 'gap'; they predict band_gap"):
        criteria.check([Criterion.parse("gap > 1")], {"m": predictor})
    with pytest.raises(ConfigError, match="write 'band_gap in LOW:HIGH'"):
        criteria.check([Criterion.parse("band_gap is true")], {"m": predictor})


def test_two_criteria_on_one_target_are_refused(predictor):
    both = [Criterion.parse("band_gap > 1"), Criterion.parse("band_gap < 2")]
    with pytest.raises(ConfigError, match="band_gap has a criterion already"):
        criteria.check(both, {"m": predictor})


def test_nothing_is_below_the_least_value(predictor, features):
    assert (Criterion("", "band_gap", high=-1.0).probability(predictor, features) == 0).all()


def test_an_interval_holds_its_level(predictor, features):
    lower, upper = predictor.intervals(features, level=0.8)
    for n, (low, high) in enumerate(zip(lower[:, 0], upper[:, 0], strict=True)):
        if low > 0:  # of a gap, what is below zero is zero
            criterion = Criterion("", "band_gap", float(low) - 1e-6, float(high) + 1e-6)
            found = criterion.probability(predictor, features[n : n + 1])
            np.testing.assert_allclose(found, 0.8, atol=2e-3)


def test_probabilities_of_disjoint_ranges_add_up(predictor, features):
    texts = ("band_gap < 2", "band_gap in 2:5", "band_gap > 5")
    parts = [Criterion.parse(text).probability(predictor, features) for text in texts]
    assert all(((part >= 0) & (part <= 1)).all() for part in parts)
    np.testing.assert_allclose(sum(parts), 1, atol=1e-9)
    # what is below the least value that is possible counts as that value
    np.testing.assert_allclose(
        Criterion.parse("band_gap in 0:2").probability(predictor, features), parts[0]
    )


def test_a_model_without_intervals_judges_nothing(predictor):
    bare = Predictor(predictor.network, predictor.config)
    with pytest.raises(ConfigError, match="has no intervals"):
        criteria.check([Criterion.parse("band_gap > 1")], {"m": bare})
