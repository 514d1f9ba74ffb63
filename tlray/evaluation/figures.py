"""Draws figures as PNG: training history, learning curve, a sweep's trials, confusion matrix, ROC."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import auc, roc_curve

from tlray.errors import DataError
from tlray.evaluation import glyphs

DPI = 160

MAX_NAMED_CLASSES = 20
"""Maximum number of classes for which a figure grows with them, names them all, and has numbers in its cells."""

NUM_LOWEST_CURVES = 10
"""Number of ROC curves, those with the smallest areas, that a figure of more than `MAX_NAMED_CLASSES` classes names."""

_CELL_IN = 0.58
_MAX_TICK_LABELS = 60
"""Maximum number of labels on a side of a confusion matrix, so that each has room for one line of small print."""

# Okabe and Ito's palette, which people with colour-blindness can tell apart, without its yellow, too pale for lines.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINE_STYLES = ("-", "--", "-.", ":")
MUTED = "#6b7280"


def plot_history(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draws loss and accuracy of training and validation by epoch, side by side.

    Args:
        history: One row per epoch with `epoch` (from 1, or 0: the probe that fine-tuning starts from), `loss`,
            `accuracy`, `valid_loss`, `valid_accuracy` and `learning_rate`; losses may be NaN, accuracies are in [0, 1].
            At least one row.

    Returns:
        A PNG. The best epoch (lowest validation loss) and reductions of the learning rate are marked. A rate that falls
        in most epochs counts as a smooth schedule and is not marked; the title has its first and last value.

    Raises:
        DataError: There are no rows.
    """
    if not history:
        raise DataError("There is no epoch to draw. Leave the history out where nothing was trained.")
    epochs = [row["epoch"] for row in history]
    best = best_epoch(history)
    rates = [row["learning_rate"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        for key, label, colour in ((name, "training", COLOURS[0]), (f"valid_{name}", "validation", COLOURS[1])):
            axes.plot(epochs, [row[key] for row in history], "o-", color=colour, label=label, markersize=3.5)
        if best is not None:
            label = f"best: epoch {epoch_label(best['epoch'])}"
            axes.scatter(
                best["epoch"],
                best[f"valid_{name}"],
                s=170,
                marker="*",
                c=COLOURS[1],
                ec="black",
                zorder=3,
                label=label,
            )
        for index, epoch in enumerate(_rate_drops(history)):
            label = "learning rate lowered" if index == 0 else None
            axes.axvline(epoch - 0.5, color=MUTED, linestyle=":", linewidth=1.2, label=label)
        axes.set_title(name.capitalize(), loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if epochs[0] == 0:
            axes.xaxis.set_major_formatter(lambda epoch, _: epoch_label(epoch).replace(" ", "\n"))
        tidy(axes)
        axes.legend(
            frameon=False, fontsize=9, loc="best"
        )  # named, as Matplotlib warns of its default on a slow machine
    panels[1].yaxis.set_major_formatter(percent_tick)
    panels[1].set_title(f"learning rate {_span(rates)}", loc="right", fontsize=9, color=MUTED)
    return to_png(figure)


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Returns the first row with the lowest finite validation loss; None if there is no such row."""
    finite = [row for row in history if math.isfinite(row["valid_loss"])]
    return min(finite, key=lambda row: row["valid_loss"], default=None)


def epoch_label(number: float) -> str:
    """Returns the label of an epoch: its number, where 0 is the probe that fine-tuning starts from."""
    return f"{number:g}" if number else "0 (probe)"


def percent_tick(share: float, _: float) -> str:
    """Returns the label of a tick at a share in [0, 1]; for `Axis.set_major_formatter`."""
    return f"{100 * share:.4g} %"


def _rate_drops(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Returns the epochs that begin with a lower learning rate; none for a smooth schedule, which lowers it always."""
    pairs = itertools.pairwise(history)
    drops = [now["epoch"] for before, now in pairs if now["learning_rate"] < before["learning_rate"]]
    return drops if len(drops) <= max(1, len(history) // 2) else []


def _span(rates: Sequence[float]) -> str:
    return f"{rates[0]:.3g}" if min(rates) == max(rates) else f"{rates[0]:.3g} to {rates[-1]:.3g}"


def plot_learning_curve(points: Sequence[Mapping[str, Any]], *, split: str) -> bytes:
    """Draws the accuracy of probes over the number of their training images.

    Args:
        points: `images_per_class` (None: all), `num_images`, `accuracies` (in [0, 1], of each draw) and
            `accuracy_ci95` of `tlray.probe.learning_curves.Point`, in rising order; at least one.
        split: Name of the split that was measured.

    Returns:
        A PNG: the mean of the draws with its interval, and a wide bar from the lowest to the highest draw; the axis of
        the images is logarithmic.
    """
    num_images = [point["num_images"] for point in points]
    accuracies = [point["accuracies"] for point in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    low, high = list(map(min, accuracies)), list(map(max, accuracies))
    axes.vlines(num_images, low, high, color=COLOURS[0], alpha=0.3, linewidth=7, label="lowest to highest draw")
    means = [float(np.mean(values)) for values in accuracies]
    ends = np.array([point["accuracy_ci95"] for point in points]).T
    lengths = np.abs(ends - means)  # [low and high, points]
    label = f"mean, with its 95 % interval for other {split} images"
    axes.errorbar(num_images, means, lengths, fmt="o-", color=COLOURS[0], capsize=4, label=label)
    axes.set_xscale("log")
    names = ["all" if point["images_per_class"] is None else point["images_per_class"] for point in points]
    axes.set_xticks(num_images, [f"{name}\n({count})" for name, count in zip(names, num_images, strict=True)])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(percent_tick)
    axes.set_xlabel("training images per class (and of all classes together)")
    axes.set_title(f"Accuracy, {split}", loc="left", fontweight="bold")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return to_png(figure)


def plot_trials(trials: Sequence[Mapping[str, float]], names: Sequence[str]) -> bytes:
    """Draws the loss of each trial of a sweep over each of its settings, one panel per setting.

    Args:
        trials: The settings, `best_loss`, `best_epoch` and `difference_error`, the best trial first; at least one.
        names: The settings to draw.

    Returns:
        A PNG. Settings that all trials share are left out; those that span more than a factor of 30 have a logarithmic
        axis; the best trial is marked. A bar is a standard error of the difference from the best one, by patient, up
        and down.
    """
    names = [name for name in names if len({trial[name] for trial in trials}) > 1] or list(names[:1])
    num_columns = 3
    num_rows = math.ceil(len(names) / num_columns)
    figure = Figure(figsize=(10, 3.1 * num_rows), layout="constrained")
    panels: list[Axes] = list(figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat)
    # A trial may be so bad that the others would lie on one line.
    worst = float(np.quantile([trial["best_loss"] for trial in trials], 0.9)) * 1.1
    tuned = np.array([trial["best_epoch"] > 0 for trial in trials])
    losses = np.minimum([trial["best_loss"] for trial in trials], worst)
    errors = [trial["difference_error"] if trial["best_loss"] <= worst else 0 for trial in trials]
    for axes, name in itertools.zip_longest(panels, names):
        if name is None:
            axes.set_axis_off()
            continue
        values = np.array([trial[name] for trial in trials], float)
        label = "1 standard error of the difference from the best, by patient"
        axes.errorbar(values, losses, errors, fmt="none", ecolor=MUTED, elinewidth=1.2, alpha=0.8, label=label)
        kinds = (("probe alone", ~tuned, "o", COLOURS[0]), ("fine-tuned", tuned, "^", COLOURS[1]))
        for label, chosen, marker, colour in kinds:
            axes.scatter(values[chosen], losses[chosen], marker=marker, s=28, c=colour, alpha=0.8, label=label)
        axes.scatter(values[0], losses[0], s=170, marker="*", c="white", ec="black", zorder=3, label="best")
        if values.min() > 0 and values.max() > 30 * values.min():
            axes.set_xscale("log")
        elif np.all(values == np.rint(values)):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(name.replace("_", " "))
        tidy(axes)
    for row in range(num_rows):
        panels[row * num_columns].set_ylabel("cross-validated loss")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    return to_png(figure)


def plot_confusion_matrix(metrics: Mapping[str, Any], *, families: Sequence[str] | None = None) -> bytes:
    """Draws a confusion matrix; for up to `MAX_NAMED_CLASSES` classes with counts and row percentages in its cells.

    Args:
        metrics: `classes` and `confusion_matrix` (rows are the truth) of `metrics.evaluate_predictions`.
        families: Font families for the class names, see `tlray.evaluation.glyphs.label_classes`.

    Returns:
        A PNG. Above `MAX_NAMED_CLASSES` its size is the same for any number of classes, and colours show the shares.
    """
    matrix_KK = np.asarray(metrics["confusion_matrix"])
    support_K = matrix_KK.sum(axis=1)
    share_KK = matrix_KK / np.maximum(support_K, 1)[:, None]
    num_classes = len(matrix_KK)
    labels = glyphs.label_classes(metrics["classes"], families)
    side_in = _CELL_IN * min(num_classes, MAX_NAMED_CLASSES) if num_classes > 6 else 1.4 * num_classes
    figure = Figure(figsize=(side_in + 2.2, side_in + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    if num_classes <= MAX_NAMED_CLASSES:
        _draw_cells(axes, matrix_KK, share_KK, font_size=12 if num_classes <= 6 else 8.5)
        columns = [glyphs.wrap(text, 20) for text in labels.texts]
        rows = [
            glyphs.wrap(text, 28) + f"\nn = {support}" for text, support in zip(labels.texts, support_K, strict=True)
        ]
    else:
        colour_bar = figure.colorbar(image, ax=axes, shrink=0.4, format=percent_tick)
        colour_bar.set_label("share of the true class")
        columns = rows = [glyphs.shorten(text, 28) for text in labels.texts]
    # Names fit below wide cells; many classes get small cells, and names that stand upright.
    name_size, rotation = (8.5, 0) if num_classes <= 6 else (7.5, 90) if num_classes <= MAX_NAMED_CLASSES else (6, 90)
    ticks = range(0, num_classes, math.ceil(num_classes / _MAX_TICK_LABELS))
    style = {"fontsize": name_size, "parse_math": False, "fontfamily": labels.families}
    axes.set_xticks(ticks, [columns[tick] for tick in ticks], rotation=rotation, **style)
    axes.set_yticks(ticks, [rows[tick] for tick in ticks], **style)
    axes.set_xlabel("predicted class", fontweight="bold", labelpad=8)
    axes.set_ylabel("true class", fontweight="bold", labelpad=8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(num_classes > MAX_NAMED_CLASSES)
    return to_png(figure)


def _draw_cells(axes: Axes, matrix_KK: np.ndarray, share_KK: np.ndarray, *, font_size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix_KK):
        _draw_cell(axes, row, column, int(count), float(share_KK[row, column]), font_size=font_size)
    axes.set_xticks(np.arange(1, len(matrix_KK)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(matrix_KK)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)


def _draw_cell(axes: Axes, row: int, column: int, count: int, share: float, *, font_size: float) -> None:
    if count == 0:
        axes.text(column, row, "0", ha="center", va="center", color=MUTED, fontsize=font_size * 0.85)
        return
    colour = "white" if share > 0.68 else "black"
    weight = "bold" if row == column else "normal"
    axes.text(column, row, f"{count}", ha="center", va="bottom", color=colour, fontsize=font_size, fontweight=weight)
    percentage = f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"
    axes.text(column, row + 0.06, percentage, ha="center", va="top", color=colour, fontsize=font_size * 0.75)


def plot_roc(
    labels: np.ndarray, probs_BK: np.ndarray, classes: Sequence[str], *, families: Sequence[str] | None = None
) -> bytes:
    """Draws the receiver operating characteristic of each class against the rest.

    Args:
        labels: True classes as indices into `classes`, integer, shape [images].
        probs_BK: Probability of each class, floating point, shape [images, K], in [0, 1].
        classes: The K class names.
        families: Font families for the class names, see `tlray.evaluation.glyphs.label_classes`.

    Returns:
        A PNG. The legend says which classes have no curve, because no image or every image is of them. For more than
        `MAX_NAMED_CLASSES` classes it names only the `NUM_LOWEST_CURVES` curves with the smallest areas.
    """
    names = glyphs.label_classes(classes, families)
    curves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for index in range(len(classes)):
        positive = labels == index
        if positive.any() and not positive.all():
            false_rates, true_rates, _ = roc_curve(positive, probs_BK[:, index])
            curves[index] = false_rates, true_rates
    areas = {index: float(auc(*curve)) for index, curve in curves.items()}
    is_crowded = len(classes) > MAX_NAMED_CLASSES
    named = sorted(areas, key=areas.__getitem__)[:NUM_LOWEST_CURVES] if is_crowded else range(len(classes))
    # Twelve spaces of this font are as wide as the area before the name.
    texts = {index: glyphs.wrap(names.texts[index], 44).replace("\n", "\n" + " " * 12) for index in named}
    num_lines = sum(text.count("\n") + 1 for text in texts.values())
    figure = Figure(figsize=(9.3, max(4.8, 0.17 * num_lines + 0.6)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    for index in curves.keys() - texts.keys():
        axes.plot(*curves[index], color=MUTED, alpha=0.25, linewidth=0.7)
    lines, legend = [], []
    for place, (index, text) in enumerate(texts.items()):
        colour, style = COLOURS[place % len(COLOURS)], _LINE_STYLES[place // len(COLOURS) % len(_LINE_STYLES)]
        if index in curves:
            lines += axes.plot(*curves[index], style, color=colour, linewidth=2, clip_on=False)
            legend.append(f"{areas[index]:.3f}   {text}")
        else:
            lines += axes.plot([], [], linestyle="none")
            legend.append(f"none    {text} ({'all' if len(labels) and (labels == index).all() else 'no'} images)")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", anchor="NW")
    axes.set_xlabel("false positive rate (1 - specificity)")
    axes.set_ylabel("true positive rate (sensitivity)")
    tidy(axes)
    title = f"AUROC, the {len(texts)} lowest of {len(curves)}" if is_crowded else "AUROC"
    font = {"family": names.families, "size": 9}
    box = figure.legend(lines, legend, loc="outside right upper", frameon=False, prop=font, title=title)
    box.set_alignment("left")
    for text in box.get_texts():
        text.set_parse_math(False)
    return to_png(figure)


def tidy(axes: Axes) -> None:
    """Gives axes a light grid, and takes away their upper and right lines."""
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def to_png(figure: Figure) -> bytes:
    """Returns a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
