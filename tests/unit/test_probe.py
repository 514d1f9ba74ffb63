import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tlray import probe


def make_data(num_classes: int, num_features: int, num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters around a centre for each class, one feature constant, the scales of the others far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, num_features))
    features = (centres[labels] + rng.normal(0, 1.5, (num_images, num_features))) * np.logspace(-2, 2, num_features)
    features[:, 3] = 7.0
    return features.astype(np.float32), labels


def logits(fitted: probe.Probe, features: np.ndarray) -> np.ndarray:
    return (features - fitted.mean) / fitted.deviation @ fitted.weights + fitted.bias


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("num_features", [20, 200])  # fewer and more than there are images
def test_it_is_the_logistic_regression_of_the_best_penalty(num_classes, num_features):
    train, labels = make_data(num_classes, num_features, 80)
    valid, valid_labels = make_data(num_classes, num_features, 60, seed=1)
    train, valid = train.astype(np.float64), valid.astype(np.float64)
    fitted = probe.fit(train, labels, valid, valid_labels, num_classes=num_classes, balanced=False)
    deviation = train.std(axis=0)
    deviation[3] = 1.0
    reference = LogisticRegression(C=fitted.best.inverse_penalty, solver="newton-cholesky", tol=1e-10)
    reference.fit((train - train.mean(axis=0)) / deviation, labels)
    expected = reference.predict_proba((valid - train.mean(axis=0)) / deviation)
    raw = logits(fitted, valid)
    probabilities = np.exp(raw - raw.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert probabilities == pytest.approx(expected, abs=1e-4)
    loss = -np.log(probabilities[np.arange(60), valid_labels]).mean()
    assert fitted.best.valid_loss == pytest.approx(loss, abs=1e-4)
    assert fitted.best.valid_accuracy == (raw.argmax(axis=1) == valid_labels).mean() > 1 / num_classes
    assert fitted.best.valid_loss == min(trial.valid_loss for trial in fitted.trials)
    assert [trial.inverse_penalty for trial in fitted.trials] == list(probe.INVERSE_PENALTIES)


def test_a_strong_penalty_leaves_the_frequencies_of_the_classes():
    features, labels = make_data(2, 20, 90)
    labels = (np.arange(90) % 3 == 0).astype(int)  # 60 of the first class, nothing to do with the features
    for balanced, expected in ((False, [2 / 3, 1 / 3]), (True, [1 / 2, 1 / 2])):
        fitted = probe.fit(features, labels, features[:6], labels[:6], num_classes=2, balanced=balanced)
        strongest = probe.fit(features * 0, labels, features[:6] * 0, labels[:6], num_classes=2, balanced=balanced)
        odds = np.exp(strongest.bias - strongest.bias.max())
        assert odds / odds.sum() == pytest.approx(expected, abs=1e-3)
        assert fitted.weights.shape == (20, 2)
