import numpy as np
import pyarrow as pa
import pytest

from tlray.config.training import TrainConfig
from tlray.data.dataset import Dataset
from tlray.probe import learning_curves, regression
from tlray.probe.learning_curves import NUM_DRAWS, Point
from tlray.training import probing
from tlray.trust.intervals import mean_interval

NUM_FEATURES = 60


def make_data(counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clusters that overlap in each feature, and hardly in all of them together; float16 as features are."""
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(99).normal(0, 0.4, (len(counts), NUM_FEATURES))
    noise = np.random.default_rng(seed).normal(0, 1, (len(labels), NUM_FEATURES))
    return (centres[labels] + noise).astype(np.float16), labels


VALID = make_data((20, 20, 20), seed=1)
TEST = make_data((100, 100, 100), seed=2)
NOTHING = np.zeros((0, NUM_FEATURES), np.float16), np.zeros(0, int)


def fit(train: np.ndarray, labels: np.ndarray, *, balanced: bool = False) -> regression.Probe:
    return regression.fit(train, labels, *VALID, num_classes=3, balanced=balanced)


def single_images(values: np.ndarray) -> tuple[float, float]:
    """The interval of images that are independent."""
    found = mean_interval(values, np.arange(len(values)))
    return found.low, found.high


def learning_curve(counts, *, test=TEST, balanced=False, seed=0, interval=single_images) -> tuple[Point, ...]:
    settings = {"num_classes": 3, "balanced": balanced, "seed": seed, "interval": interval}
    train = make_data(counts, seed=0)
    return learning_curves.learning_curve(*train, *VALID, test=test[0], test_labels=test[1], **settings)


def is_right(fitted: regression.Probe) -> np.ndarray:
    logits = (TEST[0].astype(float) - fitted.mean) / fitted.deviation @ fitted.weights + fitted.bias + fitted.shift
    return logits.argmax(axis=1) == TEST[1]


def accuracy(fitted: regression.Probe) -> float:
    return float(is_right(fitted).mean())


def test_accuracy_grows_with_the_images():
    points = learning_curve((150, 150, 150))
    assert [point.images_per_class for point in points] == [5, 10, 20, 50, None]
    assert [point.num_images for point in points] == [15, 30, 60, 150, 450]
    assert [len(point.accuracies) for point in points] == [NUM_DRAWS] * 4 + [1]
    means = [np.mean(point.accuracies) for point in points]
    assert means == sorted(means)
    assert means[0] < 0.85
    assert means[-1] > 0.95


@pytest.mark.parametrize("balanced", [False, True])
def test_the_last_point_is_the_probe_on_all_images(balanced):
    counts = (10, 40, 90)
    fitted = fit(*make_data(counts, seed=0), balanced=balanced)
    assert learning_curve(counts, balanced=balanced)[-1] == Point(
        images_per_class=None,
        num_images=140,
        accuracies=(accuracy(fitted),),
        accuracy_ci95=single_images(is_right(fitted)),
    )


def test_the_interval_is_of_how_often_the_draws_are_right_about_each_image():
    given: list[np.ndarray] = []

    def interval(shares: np.ndarray) -> tuple[float, float]:
        given.append(shares)
        return 0.25, 0.75

    points = learning_curve((30, 30, 30), seed=7, interval=interval)
    assert {point.accuracy_ci95 for point in points} == {(0.25, 0.75)}
    assert [shares.mean() for shares in given] == pytest.approx([np.mean(point.accuracies) for point in points])
    train, labels = make_data((30, 30, 30), seed=0)
    rows = [learning_curves.draw(labels, 5, np.random.default_rng([7, 5, number])) for number in range(NUM_DRAWS)]
    np.testing.assert_allclose(given[0], np.mean([is_right(fit(train[each], labels[each])) for each in rows], axis=0))


def test_without_test_images_the_validation_images_are_measured():
    counts = (10, 10, 10)
    last = learning_curve(counts, test=NOTHING)[-1]
    assert last.accuracies == (fit(*make_data(counts, seed=0)).best.valid_accuracy,)
    assert last.accuracies != learning_curve(counts)[-1].accuracies


def test_every_draw_is_random_and_can_be_repeated():
    points = learning_curve((30, 30, 30), seed=7)
    assert points == learning_curve((30, 30, 30), seed=7)
    assert points[:-1] != learning_curve((30, 30, 30), seed=8)[:-1]
    train, labels = make_data((30, 30, 30), seed=0)
    rows = [learning_curves.draw(labels, 10, np.random.default_rng([7, 10, number])) for number in range(NUM_DRAWS)]
    assert len({frozenset(each.tolist()) for each in rows}) == NUM_DRAWS
    assert points[1].accuracies == tuple(accuracy(fit(train[each], labels[each])) for each in rows)


def test_a_draw_has_each_image_once_and_small_classes_whole():
    labels = np.array([2, 0, 1, 1, 0, 1, 1, 0, 1])
    rows = learning_curves.draw(labels, 3, np.random.default_rng(0))
    assert len(set(rows.tolist())) == len(rows)
    assert np.bincount(labels[rows]).tolist() == [3, 3, 1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((3, 40, 200), [(5, 13), (10, 23), (20, 43), (50, 93), (None, 243)]),
        ((3, 3, 3), [(None, 9)]),
        ((6, 6, 6), [(None, 18)]),  # 15 would be more than 0.8 of them
        ((7, 7, 7), [(5, 15), (None, 21)]),
        ((60, 1, 1), [(5, 7), (10, 12), (20, 22), (None, 62)]),
    ],
)
def test_sizes_that_would_take_nearly_all_are_left_out(counts, expected):
    assert [(point.images_per_class, point.num_images) for point in learning_curve(counts)] == expected


@pytest.mark.parametrize(("test", "measured"), [(TEST, "test"), (NOTHING, "valid")])
def test_a_run_gives_the_features_of_its_own_splits(test, measured):
    """The table of features has another order than the manifest, and views that do not belong here."""
    splits = {"train": make_data((8, 10, 12), seed=0), "valid": VALID, "test": test}
    names = ("a", "b", "c")
    rows = [
        # Each image is a patient of its own, but for the measured ones: there every two are of one patient.
        {
            "image_id": f"{split}-{number}",
            "label": names[label],
            "split": split,
            "error_code": None,
            "group_id": f"{split}-{number // 2 if split == measured else number}",
            "sha256": f"{split}-{number}",
        }
        for split, (_, labels) in splits.items()
        for number, label in enumerate(labels)
    ]
    pooled = np.concatenate([features for features, _ in splits.values()])
    order = np.random.default_rng(0).permutation(len(rows))
    table = pa.table({
        "image_id": [rows[place]["image_id"] for place in order] * 2,
        "view": [0] * len(rows) + [1] * len(rows),
        "pooled": pa.FixedShapeTensorArray.from_numpy_ndarray(np.concatenate([pooled[order], 0 * pooled])),
    })  # fmt: skip
    config = TrainConfig(data="d", out="o", method="probe", class_weights=True, seed=3)
    images = Dataset(table=pa.Table.from_pylist(rows), findings={})

    def pairs(values: np.ndarray) -> tuple[float, float]:
        found = mean_interval(values, np.arange(len(values)) // 2)
        return found.low, found.high

    found = probing.learning_curve(config, images, table)
    wanted = learning_curve((8, 10, 12), test=test, balanced=True, seed=3, interval=pairs)
    assert [point.accuracies for point in found] == [point.accuracies for point in wanted]
    assert [point.num_images for point in found] == [point.num_images for point in wanted]
    np.testing.assert_allclose([each.accuracy_ci95 for each in found], [each.accuracy_ci95 for each in wanted])
    expected = fit(*splits["train"], balanced=True)
    assert probing.fit(config, images, table).best == expected.best
