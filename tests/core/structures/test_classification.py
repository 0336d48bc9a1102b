"""Scores of probabilities against scikit-learn, and the logistic floor."""

import numpy as np
import pytest

from matattn.structures import classification


@pytest.fixture(params=[0, 1])
def case(request):
    generator = np.random.default_rng(request.param)
    true = (generator.random(200) < 0.3).astype(float)
    probability = np.clip(0.3 * true + 0.6 * generator.random(200), 0, 1)
    return true, np.round(probability, 2)  # with ties


def test_scores_are_those_of_scikit_learn(case):
    from sklearn import metrics

    true, probability = case
    found = classification.scores(true, probability)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(true, probability), abs=1e-12)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(true, probability), abs=1e-6)
    accuracy = metrics.balanced_accuracy_score(true, probability >= 0.5)
    assert found["balanced_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_curve_is_that_of_scikit_learn(case):
    from sklearn import metrics

    wrong, right = classification.roc_curve(*case)
    expected = metrics.roc_curve(*case, drop_intermediate=False)
    assert np.allclose(wrong, expected[0]) and np.allclose(right, expected[1])
    assert np.trapezoid(right, wrong) == pytest.approx(classification.auroc(*case))


def test_one_class_has_a_log_loss_only():
    found = classification.scores(np.ones(3), np.array([0.9, 0.9, 0.9]))
    assert found == {
        "log_loss": pytest.approx(-np.log(0.9)), "auroc": None, "balanced_accuracy": None
    }  # fmt: skip
    assert np.isfinite(classification.log_loss(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


def test_reliability_of_perfect_probabilities_is_the_diagonal():
    generator = np.random.default_rng(0)
    probability = generator.random(100_000)
    true = (generator.random(100_000) < probability).astype(float)
    said, seen = classification.reliability(true, probability)
    assert len(said) == 10 and np.abs(said - seen).max() < 0.02
    assert len(classification.reliability(np.ones(2), np.array([1.0, 1.0]))[0]) == 1


def test_logistic_fit_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    x = generator.random((300, 4))
    y = (x @ [3, -2, 0, 1] + generator.normal(size=300) > 1.2).astype(float)
    intercept, coefficients = classification.logistic_fit(x, y, ridge=0.5)
    other = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(x, y)
    assert coefficients == pytest.approx(other.coef_[0], abs=1e-4)
    assert intercept == pytest.approx(other.intercept_[0], abs=1e-4)


def test_logistic_fit_of_separable_and_of_equal_labels_is_finite():
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert np.isfinite(classification.logistic_fit(x, np.array([0.0, 0, 1, 1]), ridge=1e-3)[1])
    intercept, coefficients = classification.logistic_fit(x, np.ones(4))
    assert classification.sigmoid(np.array(intercept)) > 0.999 and not coefficients.any()
