import tracemalloc

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tlray.data import decoding as images
from tlray.data import phantom_files
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.probe import regression


def make_data(num_classes: int, num_features: int, num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters around a centre for each class, one feature constant, the scales of the others far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, num_features))
    features = (centres[labels] + rng.normal(0, 1.5, (num_images, num_features))) * np.logspace(-2, 2, num_features)
    features[:, 3] = 7.0
    rare = np.arange(num_images) % 29 == 0
    features[:, 4] = np.where(rare, 6e-8, 0.0)  # float16's smallest step, now and then
    features[:, 5] = np.where(rare, 1e-5, 0.0)  # a deviation of two millionths
    return features.astype(np.float32), labels


def logits(fitted: regression.Probe, features: np.ndarray) -> np.ndarray:
    return (features - fitted.mean) / fitted.deviation @ fitted.weights + fitted.bias


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("num_features", [20, 200])  # fewer and more than there are images
def test_it_is_the_logistic_regression_of_the_best_penalty(num_classes, num_features):
    train, labels = make_data(num_classes, num_features, 80)
    valid, valid_labels = make_data(num_classes, num_features, 60, seed=1)
    train, valid = train.astype(np.float64), valid.astype(np.float64)
    fitted = regression.fit(train, labels, valid, valid_labels, num_classes=num_classes, balanced=False)
    deviation = train.std(axis=0)
    deviation[3:5] = 1.0
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
    assert [trial.inverse_penalty for trial in fitted.trials] == list(regression.INVERSE_PENALTIES)


def test_a_strong_penalty_leaves_the_frequencies_of_the_classes():
    features, _ = make_data(2, 20, 90)
    labels = (np.arange(90) % 3 == 0).astype(int)  # 60 of the first class
    for balanced, fitted_shares in ((False, [2 / 3, 1 / 3]), (True, [1 / 2, 1 / 2])):
        fitted = regression.fit(
            features, labels, features[:6], labels[:6],
            num_classes=2, balanced=balanced, inverse_penalties=(1e-9,),
        )  # fmt: skip
        for shift, expected in ((0, fitted_shares), (fitted.shift, [2 / 3, 1 / 3])):
            odds = np.exp(logits(fitted, features) + shift)
            assert odds / odds.sum(axis=1, keepdims=True) == pytest.approx(np.tile(expected, (90, 1)), abs=1e-3)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("counts", [(90, 10), (70, 25, 5)])
def test_images_without_any_difference_have_the_shares_of_their_classes(balanced, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.ones((100, 7))
    settings = {"num_classes": len(counts), "balanced": balanced}
    fitted = regression.fit(features, labels, features, labels, **settings)
    shares = np.array(counts) / 100
    odds = np.exp(logits(fitted, features[:1])[0] + fitted.shift)
    assert odds / odds.sum() == pytest.approx(shares, abs=1e-5)
    entropy = -(shares * np.log(shares)).sum()
    assert [trial.valid_loss for trial in fitted.trials] == pytest.approx([entropy] * len(fitted.trials), abs=1e-6)
    assert fitted.best.valid_accuracy == fitted.train_accuracy == shares[0]
    learned = np.full(len(counts), 1 / len(counts)) if balanced else shares
    assert fitted.train_loss == pytest.approx(-(learned * np.log(learned)).sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("balanced", "weights"),
    [(False, (1.0, 1.0)), (True, (0.75, 1.5))],  # 90 / (2 * 60), 90 / (2 * 30)
)
def test_the_training_loss_is_weighted_as_that_of_fine_tuning(balanced, weights):
    """One feature, 0 or 1: without a penalty the probabilities are the weighted frequencies among equal images."""
    counts = np.array([[50, 10], [3, 27]])  # [class, feature]
    labels, features = (np.repeat(each, counts.ravel()) for each in ([0, 0, 1, 1], [0, 1, 0, 1]))
    fitted = regression.fit(
        features[:, None].astype(float), labels, features[:, None].astype(float), labels,
        num_classes=2, balanced=balanced, inverse_penalties=(1e6,),
    )  # fmt: skip
    weighted = counts * np.array(weights)[:, None]
    losses = -np.log(weighted / weighted.sum(axis=0))
    assert fitted.train_loss == pytest.approx((weighted * losses).sum() / 90, abs=1e-4)
    # Validated as exported: under the shares of the classes, whose posterior is the frequency itself.
    losses = -np.log(counts / counts.sum(axis=0))
    assert fitted.best.valid_loss == pytest.approx((counts * losses).sum() / 90, abs=1e-4)
    assert (abs(fitted.train_loss - fitted.best.valid_loss) > 1e-3) is balanced


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_memory_that_it_takes(num_classes):
    features, labels = make_data(num_classes, 400, 3000)
    features = features.astype(np.float16)
    tracemalloc.start()
    regression.fit(
        features, labels, features[:600], labels[:600],
        num_classes=num_classes, balanced=True, inverse_penalties=(1e-3,),
    )  # fmt: skip
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Float16 features are 2 bytes, of all splits some 3 for each of training, and twice while they are looked up.
    assert regression.memory_bytes(3000, 400, num_classes) == pytest.approx(peak + 3000 * 400 * 6, rel=0.15)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_keras_head_computes_the_same(num_classes):
    features, labels = make_data(num_classes, 20, 90)
    fitted = regression.fit(features, labels, features[:9], labels[:9], num_classes=num_classes, balanced=True)
    images = keras.Input((1, 1, 20))
    extractor = keras.Model(images, keras.layers.Flatten()(images))
    head = models.with_linear_head(extractor, num_classes=num_classes, dropout=0.5)
    models.set_linear_head(head, **fitted.arrays())
    given = np.asarray(head(features[:, None, None, :]))
    assert given == pytest.approx(logits(fitted, features), rel=1e-5, abs=1e-4)
    assert np.ptp(given) > 1
    again = models.from_json(head.to_json(), models.get_weights(head))
    assert np.array_equal(np.asarray(again(features[:, None, None, :])), given)


def test_hidden_layers_begin_as_the_linear_head_and_are_trained():
    features, labels = make_data(3, 20, 90)
    fitted = regression.fit(features, labels, features[:9], labels[:9], num_classes=3, balanced=True)
    images = keras.Input((1, 1, 20))
    extractor = keras.Model(images, keras.layers.Flatten()(images))
    linear = models.with_linear_head(extractor, num_classes=3, dropout=0.0)
    assert models.with_hidden_layers(linear, hidden_units=(), dropout=0.5) is linear
    models.set_linear_head(linear, **fitted.arrays())
    keras.utils.set_random_seed(0)
    head = models.with_hidden_layers(linear, hidden_units=(16, 8), dropout=0.5)
    pixels = features[:, None, None, :].astype(np.float32)
    assert np.array_equal(np.asarray(head(pixels)), np.asarray(linear(pixels)))
    dropouts = [layer for layer in head.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.5, 0.5]
    head.get_layer(models.LOGITS_LAYER).trainable = False
    head.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shuffled = np.random.default_rng(0).permutation(labels)  # nothing that the linear head knows
    before = head.test_on_batch(pixels, shuffled)
    for _ in range(100):
        head.train_on_batch(pixels, shuffled)
    assert head.test_on_batch(pixels, shuffled) < 0.9 * before
    again = models.from_json(head.to_json(), models.get_weights(head))
    assert np.array_equal(np.asarray(again(pixels)), np.asarray(head(pixels)))
    rounded = models.from_json(models.mixed_bfloat16(head.to_json()), models.get_weights(head))
    computed_in = {layer.name: layer.compute_dtype for layer in rounded.layers}
    ends = (models.STANDARDISATION_LAYER, models.LOGITS_LAYER, models.HIDDEN_LOGITS_LAYER, models.SUM_LAYER)
    assert {computed_in[name] for name in ends} == {"float32"}
    assert [computed_in[layer.name] for layer in dropouts] == ["bfloat16"] * 2
    np.testing.assert_allclose(rounded(pixels), head(pixels), rtol=0.02, atol=0.05)


def test_how_much_features_vary_by_hand():
    # A constant, one whose deviation is 3/5 of its root mean square, one without a mean, one that is always 0.
    mean, deviation = np.array([7.0, 4.0, 0.0, 0.0]), np.array([0.0, 3.0, 2.0, 0.0])
    assert regression.variation(mean, deviation) == pytest.approx(0.3)  # between 0 and 0.6
    assert regression.variation(mean[:3], deviation[:3]) == pytest.approx(0.6)


def test_features_that_hardly_differ_are_warned_of():
    features, labels = make_data(4, 20, 80)
    usual = regression.fit(features, labels, features, labels, num_classes=4, balanced=False)
    expected = features.astype(np.float64).std(axis=0) / np.sqrt(np.square(features.astype(np.float64)).mean(axis=0))
    expected[4] = 0  # under the least deviation
    assert usual.variation == pytest.approx(np.median(expected), rel=1e-5)
    assert regression.variation_warning(usual.variation) == []
    flat = 100 + features / features.std(axis=0).clip(1e-3)
    alike = regression.fit(flat, labels, flat, labels, num_classes=4, balanced=False)
    assert alike.variation == pytest.approx(0.01, rel=0.05)
    flat = 250 + features / features.std(axis=0).clip(1e-3)
    alike = regression.fit(flat, labels, flat, labels, num_classes=4, balanced=False)
    (warning,) = regression.variation_warning(alike.variation)
    assert warning.startswith(
        "The network's features hardly differ between the images: the median feature varies by 0.4% of its size."
    )
    constant = np.full((80, 20), 3.0, np.float32)
    assert regression.fit(constant, labels, constant, labels, num_classes=4, balanced=False).variation == 0


@pytest.mark.parametrize(("preprocessing", "is_told"), [("raw", False), ("symmetric", True)])
def test_pixels_that_are_scaled_twice_are_warned_of(tmp_path, preprocessing, is_told):
    """Into [-1, 1] by --preprocessing, and by the network itself: all images are about -1 then."""
    phantom_files.write_data_set(
        str(tmp_path), num_patients_per_class=3, num_slices_per_patient=2, size_px=64, seed=1, num_unreadable=0
    )
    files = sorted(tmp_path.glob("*/*/*"))
    pixels = np.stack([images.to_array(images.decode(path.read_bytes(), size_px=64)) for path in files])
    labels = np.arange(len(files)) * 4 // len(files)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for num_filters in (8, 12, 16):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    extractor, _ = trunk.extractor(keras.Model(inputs, x), preprocessing, pooled=True, cut=False)
    features = np.asarray(extractor(pixels)).astype(np.float16)
    fitted = regression.fit(features, labels, features, labels, num_classes=4, balanced=False)
    assert bool(regression.variation_warning(fitted.variation)) is is_told
