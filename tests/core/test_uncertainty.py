"""Intervals keep their promise; novelty grows with the distance from the training rows."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from matattn import bundle
from matattn.errors import BundleError
from matattn.models.crystalformer import Crystalformer
from matattn.structures.ensemble import Ensemble
from matattn.uncertainty import (
    FEWEST_ROWS,
    LEVEL,
    MOST_SCORES,
    SPREADS,
    LatentDistance,
    Uncertainty,
    conformal_quantile,
)

SMALL = {"num_targets": 2, "dim": 8, "num_heads": 2, "num_blocks": 1, "ffn_dim": 8, "num_radial": 4}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("count", "level", "rank"),
    [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (29, 0.9, 27), (3, 0.5, 2)],
)
def test_conformal_quantile_by_hand(count, level, rank):
    scores = torch.randperm(count).float() + 1
    assert conformal_quantile(scores, level) == rank


def test_too_few_scores_promise_nothing():
    assert conformal_quantile(torch.arange(8.0), 0.9) == math.inf


def test_coverage_of_exchangeable_rows():
    """The mean coverage over many calibrations lies in [L, L + 1/(n+1)]."""
    count, draws = 39, 4000
    scores, new = torch.rand(draws, count), torch.rand(draws)
    quantiles = torch.tensor([conformal_quantile(row, LEVEL) for row in scores])
    covered = float((new <= quantiles).double().mean())
    error = 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)
    assert LEVEL - error < covered < LEVEL + 1 / (count + 1) + error


def test_latent_distance_is_zero_at_training_rows_and_grows():
    features = torch.randn(500, 64) @ torch.randn(64, 64)
    distance = LatentDistance.fit(features)
    assert distance(features).max() < 0.05  # references are kept in half precision
    direction = torch.randn(64)
    far = torch.stack([distance(features[:20] + step * direction) for step in (3, 10, 100)])
    assert (far.diff(dim=0) > 0).all()


def test_latent_distance_of_constant_features_is_finite():
    distance = LatentDistance.fit(torch.ones(30, 4))
    assert distance(torch.ones(2, 4)).isfinite().all()


def network(members):
    networks = [Crystalformer(**SMALL) for _ in range(members)]
    return Ensemble(networks) if members > 1 else networks[0]


def rows(count, members, scale=1.0):
    return scale * torch.randn(count, 8 * members)


@pytest.mark.parametrize("method", SPREADS)
def test_every_method_covers_new_rows(method):
    members = 3
    ensemble = network(members)
    train, held, new = (rows(count, members) for count in (400, 300, 2000))
    errors = [torch.randn(len(part), 2).abs() * torch.tensor([0.1, 3.0]) for part in (train, held)]
    fitted = Uncertainty.fit(method, ensemble, (train, errors[0] / 4), (held, errors[1]))
    with torch.no_grad():
        half = fitted.half_widths(ensemble, new)
    assert half.shape == (2000, 2) and (half > 0).all()
    covered = (torch.randn(2000, 2).abs() * torch.tensor([0.1, 3.0]) <= half).double().mean(0)
    assert ((covered > 0.85) & (covered < 0.95)).all(), covered


@pytest.mark.parametrize(("smaller", "narrower"), [(0.8, 0.8), (0.25, 0.5)])
def test_training_rows_have_narrower_intervals(smaller, narrower):
    """By as much as their errors are smaller, but by no more than a half."""
    single = network(1)
    train, held = rows(300, 1), rows(200, 1)
    errors = (torch.full((300, 2), smaller), torch.ones(200, 2))
    fitted = Uncertainty.fit("latent_distance", single, (train, errors[0]), (held, errors[1]))
    trained, new = (fitted.half_widths(single, part).median(0).values for part in (train, held))
    assert torch.allclose(trained / new, torch.tensor([narrower, narrower]), atol=0.02)


def test_novelty_flags_one_percent_of_such_rows_and_all_far_ones():
    single = network(1)
    train, held, new = (rows(count, 1) for count in (2000, 1000, 4000))
    errors = (torch.rand(2000, 2), torch.rand(1000, 2))
    fitted = Uncertainty.fit("latent_distance", single, (train, errors[0]), (held, errors[1]))
    assert 0.002 < (fitted.novelty(new) > 1).double().mean() < 0.02
    assert (fitted.novelty(new + 100) > 1).all()


def test_missing_labels_do_not_count():
    single = network(1)
    train, held = rows(100, 1), rows(80, 1)
    errors = (torch.rand(100, 2), torch.rand(80, 2))
    errors[1][:40, 1] = float("nan")
    fitted = Uncertainty.fit("latent_distance", single, (train, errors[0]), (held, errors[1]))
    alone = Uncertainty.fit(
        "latent_distance", single, (train, errors[0][:, 1:]), (held[40:], errors[1][40:, 1:])
    )
    assert fitted.half_widths(single, held).isfinite().all()
    assert len(alone.scores) == 40


DESCRIPTION = {
    "targets": [{"name": name, "unit": "eV"} for name in ("a", "b")],
    "normaliser": {"mean": [0.0, 0.0], "std": [1.0, 1.0]},
    "elements": [1],
}


@pytest.mark.parametrize("members", [1, 3])
def test_bundle_keeps_network_and_uncertainty(tmp_path, members):
    trained = network(members)
    train, held = rows(60, members), rows(40, members)
    errors = (torch.rand(60, 2), torch.rand(40, 2))
    fitted = Uncertainty.fit("latent_distance", trained, (train, errors[0]), (held, errors[1]))
    networks = list(trained) if members > 1 else trained
    bundle.save(tmp_path / "model", networks, SMALL, DESCRIPTION, "card", fitted)
    networks, config, uncertainty = bundle.load(tmp_path / "model")
    assert config.get("members", 1) == members == len(networks)
    loaded = Ensemble(networks) if members > 1 else networks[0]
    with torch.no_grad():
        assert torch.equal(loaded.readout(held), trained.readout(held))
    half, expected = uncertainty.half_widths(loaded, held), fitted.half_widths(trained, held)
    assert torch.allclose(half, expected, rtol=1e-5)
    assert torch.allclose(uncertainty.novelty(held), fitted.novelty(held), rtol=1e-5)


def test_damaged_or_missing_uncertainty_is_refused(tmp_path):
    trained = network(1)
    parts = [(rows(40, 1), torch.rand(40, 2)) for _ in range(2)]
    fitted = Uncertainty.fit("latent_distance", trained, *parts)
    bundle.save(tmp_path / "model", trained, SMALL, DESCRIPTION, "card", fitted)
    file = tmp_path / "model" / "uncertainty.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(BundleError, match="uncertainty.safetensors: checksum differs"):
        bundle.load(tmp_path / "model")
    file.unlink()
    with pytest.raises(BundleError, match="uncertainty.safetensors: missing"):
        bundle.load(tmp_path / "model")


def test_unknown_method_is_refused(tmp_path):
    parts = [(rows(40, 1), torch.rand(40, 2)) for _ in range(2)]
    fitted = Uncertainty.fit("latent_distance", network(1), *parts)
    with pytest.raises(KeyError, match="os.system"):
        Uncertainty.from_parts(fitted.config() | {"method": "os.system"}, fitted.tensors())


@pytest.fixture
def calibrated():
    """Intervals of a network whose errors on left-out kinds are five times as large."""
    train, held, left_out = (torch.randn(n, 16) for n in (300, 200, 400))
    found = Uncertainty.fit("latent_distance", None, (train, torch.rand(300, 1) / 10),
                            (held, torch.rand(200, 1)))  # fmt: skip
    return found.with_kinds(found.kind_errors(None, left_out, 5 * torch.rand(400, 1))), left_out


def test_intervals_of_new_kinds_hold_their_errors(calibrated):
    found, _ = calibrated
    fresh = torch.randn(2000, 16)
    errors = 5 * torch.rand(2000, 1)
    half = found.half_widths(None, fresh, new=True)
    assert 0.85 < float((errors <= half).double().mean()) < 0.95
    assert float((errors <= found.half_widths(None, fresh)).double().mean()) < 0.4


def test_kinds_survive_a_bundle(calibrated):
    found, features = calibrated
    again = Uncertainty.from_parts(found.config(), found.tensors())
    torch.testing.assert_close(
        again.half_widths(None, features, new=True), found.half_widths(None, features, new=True)
    )


def test_without_scores_of_kinds_there_are_no_such_intervals(calibrated):
    found, features = calibrated
    bare = dataclasses.replace(found, kind_scores=None)
    with pytest.raises(ValueError, match="no intervals for new kinds"):
        bare.half_widths(None, features, new=True)


def test_many_scores_are_thinned(calibrated):
    found, _ = calibrated
    assert len(found.with_kinds(torch.rand(50_000, 1)).kind_scores) <= MOST_SCORES


def test_too_few_scores_of_kinds_are_none(calibrated):
    found, _ = calibrated
    bare = dataclasses.replace(found, kind_scores=None)
    sparse = torch.full((500, 1), torch.nan)
    sparse[:FEWEST_ROWS] = 1.0
    assert len(bare.with_kinds(sparse).kind_scores) == FEWEST_ROWS
    assert bare.with_kinds(sparse[1:]).kind_scores is None


def test_threads_do_not_share_distances(calibrated):
    found, _ = calibrated
    inputs = [torch.randn(50, 16) for _ in range(8)]
    expected = [found.distance(features).clone() for features in inputs]
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(found.distance, inputs * 50))
    assert all(torch.equal(a, b) for a, b in zip(again, expected * 50, strict=True))


def test_a_shift_is_seen_in_many_structures_and_not_in_one(calibrated):
    found, _ = calibrated
    seen = found.distances
    assert not found.is_shifted(seen)
    assert not found.is_shifted(seen[:0])
    assert not found.is_shifted(seen.max()[None] * 10)
    assert found.is_shifted(seen.max().repeat(8) * 2)
    assert not found.is_shifted(seen * 0.5)
    draws = torch.stack([seen[torch.randint(len(seen), (30,))] for _ in range(300)])
    assert sum(found.is_shifted(row) for row in draws) <= 2


def test_a_shift_that_is_small_is_none(calibrated):
    """With very many structures any difference is certain; a small one does not matter."""
    found, _ = calibrated
    many = found.distances.repeat(50) * 1.02
    assert not found.is_shifted(many)


def test_copies_at_no_distance_count_half(calibrated):
    found, _ = calibrated
    zero = dataclasses.replace(found, distances=torch.zeros(50))
    assert not zero.is_shifted(torch.zeros(1000))


def test_probabilities_of_new_kinds_use_their_scores(calibrated):
    found, _ = calibrated
    half = found.half_widths(None, found.distance.center[None], new=True)
    unit = found.spread(None, found.distance.center[None], new=True)
    inside = [found.below(sign * half[:, 0] / unit[:, 0], 0, new=True) for sign in (1, -1)]
    assert float(inside[0] - inside[1]) == pytest.approx(0.9, abs=0.01)
