"""The next structures to label."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from matattn.errors import BundleError, ConfigError
from matattn.workflows.structures.pool import Pool
from matattn.workflows.structures.predict import Predictor
from matattn.workflows.structures.suggest import Goal, diverse, expected_improvement, suggest

GAP = "band_gap"


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load("mp-band-gap")


@pytest.fixture(scope="module")
def pool(predictor):
    """Feature vectors around those of training rows, some of them twice."""
    generator = torch.Generator().manual_seed(0)
    center = predictor.uncertainty.distance.center
    features = center + torch.randn(60, len(center), generator=generator) * center.abs().mean()
    features = torch.cat([features, features[:10]])
    names = [{"id": str(n), "path": "", "formula": ""} for n in range(len(features))]
    return Pool(names, features, 0)


@pytest.mark.parametrize("sign, best", [(1, 1.0), (-1, 0.3)])
def test_expected_improvement_is_the_integral(sign, best):
    for mean, deviation in ((0.5, 0.4), (2.0, 0.1)):

        def gain(y, mean=mean, deviation=deviation):
            return max(sign * (y - best), 0) * norm.pdf(y, mean, deviation)

        expected, _ = quad(gain, mean - 8 * deviation, mean + 8 * deviation, points=[best])
        found = expected_improvement(np.array([mean]), np.array([deviation]), best, sign)
        assert found[0] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_a_batch_has_no_two_of_a_kind():
    score = np.array([1.0, 0.99, 0.98, 0.5, 0.4])
    points = torch.tensor([[0.0], [0.001], [0.002], [5], [9]])
    assert diverse(score, points, 3).tolist() == [0, 3, 4]
    assert diverse(score, 1000 * torch.eye(5), 3).tolist() == [0, 1, 2]


def test_a_copy_is_not_suggested_twice(predictor, pool):
    chosen = suggest(predictor, pool, Goal(GAP, 0), 20).chosen
    assert len(set(chosen.tolist())) == 20
    assert len({n % 60 for n in chosen.tolist()}) == 20


def test_goals_rank_by_their_own_score(predictor, pool):
    high, low = (suggest(predictor, pool, Goal(GAP, sign), 5) for sign in (1, -1))
    assert high.values[high.chosen].mean() > high.values.mean() > low.values[low.chosen].mean()
    assert high.best == high.values.max() and low.best == low.values.min()
    learned = suggest(predictor, pool, Goal(GAP, 0), 5)
    assert learned.best is None and learned.chosen[0] == learned.deviations.argmax()


def test_it_says_when_the_pool_is_exhausted(predictor, pool):
    found = suggest(predictor, pool, Goal(GAP, 1, best=100.0), 5)
    assert found.better < 1e-6
    found = suggest(predictor, pool, Goal(GAP, 1, best=-5.0), 5)
    assert found.better > 65


def test_a_pool_may_be_smaller_than_the_batch(predictor, pool):
    assert len(suggest(predictor, pool, Goal(GAP, 1), 1000).chosen) == 70
    one = Pool(pool.names[:1], pool.features[:1], 0)
    rows = suggest(predictor, one, Goal(GAP, 1), 3).rows(one, Goal(GAP, 1), "eV")
    assert [row["rank"] for row in rows] == [1] and rows[0]["band_gap_unit"] == "eV"


def test_what_cannot_be_suggested_is_told(predictor, pool):
    with pytest.raises(ConfigError, match="tc: this model predicts band_gap"):
        suggest(predictor, pool, Goal("tc", 1), 5)
    bare = Predictor(predictor.network, predictor.config)
    with pytest.raises(BundleError, match="has no intervals"):
        suggest(bare, pool, Goal(GAP, 1), 5)
