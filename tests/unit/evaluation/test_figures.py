import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlray.errors import DataError
from tlray.evaluation.figures import (
    best_epoch,
    plot_confusion_matrix,
    plot_history,
    plot_learning_curve,
    plot_roc,
    plot_trials,
)


def history_rows(valid_losses: list[float], learning_rates: list[float]) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "valid_loss": valid_loss,
            "valid_accuracy": 0.75,
            "learning_rate": learning_rate,
        }
        for epoch, (valid_loss, learning_rate) in enumerate(zip(valid_losses, learning_rates, strict=True), start=1)
    ]


HISTORY = history_rows([0.9, 0.4321, 0.5, 0.6], [1e-3, 1e-3, 1e-3, 1e-4])


CURVE = [
    {"images_per_class": 5, "num_images": 18, "accuracies": (0.5, 0.625, 0.75), "accuracy_ci95": (0.4, 0.8)},
    {"images_per_class": 20, "num_images": 60, "accuracies": (0.8125, 0.75, 0.8125), "accuracy_ci95": (0.5, 0.9)},
    {"images_per_class": None, "num_images": 613, "accuracies": (0.9375,), "accuracy_ci95": (0.7, 0.99)},
]


def predictions(confusion_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes labels and probabilities that have exactly this confusion matrix."""
    pairs = [(row, column) for (row, column), count in np.ndenumerate(confusion_KK) for _ in range(count)]
    labels, predicted = np.array(pairs).T
    noise_BK = np.random.default_rng(0).uniform(size=(len(labels), len(confusion_KK)))
    probs_BK = (noise_BK + 2 * np.eye(len(confusion_KK))[predicted]).astype(np.float32)
    return labels, probs_BK / probs_BK.sum(axis=1, keepdims=True)


def decode(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.load()
    return image


def is_drawn_on(image: Image.Image) -> bool:
    """Tells whether it has more than ten levels of grey."""
    return sum(count > 0 for count in image.convert("L").histogram()) > 10


def test_best_epoch():
    assert best_epoch(HISTORY) is HISTORY[1]
    assert best_epoch(history_rows([float("nan"), 0.5, 0.5], [1e-3] * 3)) == pytest.approx(
        history_rows([0.0, 0.5], [1e-3] * 2)[1]
    )
    assert best_epoch(history_rows([float("nan")], [1e-3])) is None
    assert best_epoch([]) is None


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        HISTORY[:1],
        [HISTORY[0] | {"epoch": 0}, *HISTORY],
        history_rows([float("nan")] * 2, [1e-3] * 2),
        history_rows([1.0, 0.5, float("inf")], [1e-3] * 3),
        history_rows([1.0] * 100, list(np.linspace(1e-3, 0, 100))),
    ],
    ids=["plain", "one epoch", "after a probe", "diverged", "infinite", "smooth schedule"],
)
def test_history_figure(history: list[dict[str, float]]):
    image = decode(plot_history(history))
    assert 1500 < image.width < 1750
    assert 600 < image.height < 720
    assert is_drawn_on(image)


@pytest.mark.parametrize("points", [CURVE, CURVE[-1:]], ids=["plain", "all images only"])
def test_learning_curve_figure(points: list[dict[str, Any]]):
    image = decode(plot_learning_curve(points, split="test"))
    assert 1050 < image.width < 1200
    assert 600 < image.height < 720
    assert is_drawn_on(image)
    # The order of the draws does not count, their range does.
    turned = [point | {"accuracies": point["accuracies"][::-1]} for point in points]
    assert plot_learning_curve(turned, split="test") == plot_learning_curve(points, split="test")
    wider = [points[0] | {"accuracies": (*points[0]["accuracies"], 0.125)}, *points[1:]]
    assert plot_learning_curve(wider, split="test") != plot_learning_curve(points, split="test")
    unsure = [points[0] | {"accuracy_ci95": (0.25, 0.995)}, *points[1:]]
    assert plot_learning_curve(unsure, split="test") != plot_learning_curve(points, split="test")


def test_empty_history_is_no_figure():
    with pytest.raises(DataError, match="no epoch"):
        plot_history([])


@pytest.mark.parametrize("num_classes", [2, 6, 7, 20])
def test_confusion_matrix_figure(num_classes: int):
    classes = tuple(f"adenocarcinoma_left.lower.lobe_T2_N0_M0_{index}" for index in range(num_classes))
    matrix_KK = (np.eye(num_classes, dtype=int) * 5 + 1).tolist()
    image = decode(plot_confusion_matrix({"classes": classes, "confusion_matrix": matrix_KK}))
    # Cells of 1.4 inches for up to six classes, of 0.58 above, at 160 pixels an inch, and the names beside them.
    cells_px = 160 * num_classes * (1.4 if num_classes <= 6 else 0.58)
    assert cells_px < image.width < cells_px + 500
    assert cells_px < image.height < cells_px + 500
    assert is_drawn_on(image)


def test_confusion_matrix_colours_are_row_shares():
    # Rows with 100 % on the diagonal are the darkest blue whatever their counts; an empty row is the palest.
    metrics = {"classes": ("a", "b", "c"), "confusion_matrix": [[40, 0, 0], [0, 1, 0], [0, 0, 0]]}
    colours = {colour for _, colour in decode(plot_confusion_matrix(metrics)).convert("RGB").getcolors(1 << 24) or []}
    darkest, palest = (8, 48, 107), (247, 251, 255)  # the ends of ColorBrewer's Blues
    assert {darkest, palest} <= colours


@pytest.mark.parametrize("num_classes", [21, 1000])
def test_figures_of_many_classes_do_not_grow(num_classes: int):
    """0.58 inches a class made 120 classes an image of 131 megapixels, which took 6.4 GB."""
    classes = [f"{index:04}" for index in range(num_classes)]
    labels = np.arange(num_classes)
    probs_BK = (np.eye(num_classes) + 1) / (num_classes + 1)
    matrix = decode(
        plot_confusion_matrix({"classes": classes, "confusion_matrix": np.eye(num_classes, dtype=int).tolist()})
    )
    roc = decode(plot_roc(labels, probs_BK, classes))
    # 20 cells of 0.58 inches, and 2.2 and 2 inches for names: 13.8 by 13.6 inches. The edge may add 0.1 on each side.
    assert 1800 < matrix.width <= 160 * 14.0
    assert 1800 < matrix.height <= 160 * 13.8
    assert is_drawn_on(matrix)
    assert 1000 < roc.width <= 160 * 9.5
    assert 700 < roc.height < 850


def test_roc_figure_of_many_classes_names_the_lowest_curves():
    num_classes = 21
    classes = [f"class {index}" for index in range(num_classes)]
    labels = np.repeat(np.arange(num_classes), 2)
    # The second image of class k ranks below k images of the next class: the areas fall from class to class.
    probs_BK = np.full((len(labels), num_classes), 0.1)
    probs_BK[::2][np.arange(num_classes), np.arange(num_classes)] = 0.9
    for index in range(num_classes):
        probs_BK[2 * index + 1, index] = 0.5
        others = [row for row in range(len(labels)) if labels[row] != index][:index]
        probs_BK[others, index] = 0.7
    figure = plot_roc(labels, probs_BK, classes)

    def renamed(index: int) -> bytes:
        return plot_roc(labels, probs_BK, [*classes[:index], "another", *classes[index + 1 :]])

    assert [index for index in (0, 10, 11, 20) if renamed(index) != figure] == [11, 20]


def test_roc_figure_grows_with_the_legend():
    many = tuple(f"squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa_{index}" for index in range(20))
    confusion_KK = np.array([[17, 1, 0, 5], [2, 18, 0, 1], [0, 0, 13, 0], [2, 1, 0, 12]])
    small = decode(plot_roc(*predictions(confusion_KK), many[:4]))
    large = decode(plot_roc(*predictions(np.eye(20, dtype=int) * 3), many))
    assert is_drawn_on(small)
    assert 1300 < small.width < 1600
    assert 700 < small.height < 850
    assert large.height > 1000


def test_roc_figure_names_the_classes_left_out():
    # Only the legend differs between no image of `c` and `c` not being a class.
    labels = np.array([0, 0, 1, 1])
    probs_BK = np.array([[0.8, 0.2, 0], [0.6, 0.4, 0], [0.7, 0.3, 0], [0.1, 0.9, 0]], dtype=np.float32)
    assert plot_roc(labels, probs_BK, "abc") != plot_roc(labels, probs_BK[:, :2], "ab")
    assert plot_roc(labels, probs_BK, "abc") == plot_roc(labels, probs_BK, "abc")
    nothing = decode(plot_roc(np.zeros(3, dtype=int), probs_BK[:3], "abc"))
    assert 700 < nothing.height < 850


@pytest.mark.parametrize(
    "name", ["$\\frac$", "_hidden", "肺", "肺腺癌" * 40, "سرطان الرئة", "a b" * 60, "", "x" * 300, "two\nlines", "a\tb"]
)
@pytest.mark.parametrize("families", [None, ()], ids=["fonts of this machine", "matplotlib's font"])
def test_figures_take_any_class_name(name: str, families: tuple[str, ...] | None):
    matrix_KK = np.array([[3, 1], [1, 3]])
    metrics = {"classes": (name, "other"), "confusion_matrix": matrix_KK.tolist()}
    assert decode(plot_confusion_matrix(metrics, families=families)).width < 1200
    assert decode(plot_roc(*predictions(matrix_KK), (name, "other"), families=families)).width < 2200


def test_a_name_that_no_font_has_is_a_number():
    matrix_KK = np.array([[3, 1], [1, 3]])
    labels, probs_BK = predictions(matrix_KK)
    drawn = [
        (
            plot_confusion_matrix({"classes": classes, "confusion_matrix": matrix_KK}, families=()),
            plot_roc(labels, probs_BK, classes, families=()),
        )
        for classes in (("肺", "other"), ("1", "2 other"), ("2", "1 other"))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_name_is_drawn_with_the_font_that_has_it():
    metrics = {"classes": ("⍼", "other"), "confusion_matrix": [[3, 1], [1, 3]]}
    # DejaVu Sans lacks U+237C. Both fonts come with matplotlib.
    drawn = plot_confusion_matrix(metrics, families=("STIXGeneral",))
    assert drawn != plot_confusion_matrix(metrics, families=())
    assert drawn != plot_confusion_matrix(metrics | {"classes": (" ", "other")}, families=("STIXGeneral",))


def test_trials_have_a_panel_for_each_setting_that_varies():
    names = ["depths", "inverse_penalty", "dropout", "views"]
    varied = [(1, 1e-5, 0.0, 1), (2, 1e-2, 0.3, 2), (5, 1.0, 0.5, 3)]
    trials = [
        dict(zip(names, values, strict=True)) | {"best_loss": loss, "best_epoch": epoch, "difference_error": loss - 0.2}
        for values, loss, epoch in zip(varied, (0.2, 0.4, 9.0), (3, 0, 0), strict=True)
    ]
    two_rows_png = plot_trials(trials, names)
    two_rows = decode(two_rows_png)
    assert is_drawn_on(two_rows)
    one_row = decode(plot_trials([trial | {"views": 1} for trial in trials], names))
    assert one_row.height < 0.7 * two_rows.height
    assert is_drawn_on(decode(plot_trials(trials[:1], names)))  # of one trial: the first setting
    # The errors of the differences are drawn, but for the trial that is far above the others.
    assert plot_trials([trials[0], trials[1] | {"difference_error": 0.1}, trials[2]], names) != two_rows_png
    assert plot_trials([*trials[:2], trials[2] | {"difference_error": 0.1}], names) == two_rows_png
