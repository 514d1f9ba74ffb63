import base64
import dataclasses
import pickle
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tlray.bundle.judgement import Limits
from tlray.evaluation import report as reports
from tlray.evaluation.measurement import measure_probabilities
from tlray.evaluation.report import Report, SplitEvaluation, make_figures, render_report
from tlray.trust.intervals import Interval
from tlray.trust.overlays import CENTRE, OVERLAY, RANDOM, Areas, OverlayCheck

CLASSES = (
    "adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib",
    "large.cell.carcinoma_left.hilum_T2_N2_M0_IIIa",
    "normal",
    "squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa",
)


def history_rows(valid_losses: list[float], learning_rates: list[float]) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "valid_loss": valid_loss,
            "valid_accuracy": 0.8125 if epoch == 2 else 0.75,
            "learning_rate": learning_rate,
            "time_s": 65.0,
        }
        for epoch, (valid_loss, learning_rate) in enumerate(zip(valid_losses, learning_rates, strict=True), start=1)
    ]


CURVE = [
    {"images_per_class": 5, "num_images": 18, "accuracies": (0.5, 0.625, 0.75), "accuracy_ci95": (0.4, 0.8)},
    {"images_per_class": 20, "num_images": 60, "accuracies": (0.8125, 0.75, 0.8125), "accuracy_ci95": (0.5, 0.9)},
    {"images_per_class": None, "num_images": 613, "accuracies": (0.9375,), "accuracy_ci95": (0.7, 0.99)},
]

HISTORY = history_rows([0.9, 0.4321, 0.5, 0.6], [1e-3, 1e-3, 1e-3, 1e-4])


def evaluation(confusion_KK: list[list[int]], classes: tuple[str, ...]) -> SplitEvaluation:
    """Makes predictions that have exactly this confusion matrix."""
    pairs = [(row, column) for (row, column), count in np.ndenumerate(np.array(confusion_KK)) for _ in range(count)]
    labels, predicted = np.array(pairs).T
    noise_BK = np.random.default_rng(0).uniform(size=(len(labels), len(classes)))
    probs_BK = (noise_BK + 2 * np.eye(len(classes))[predicted]).astype(np.float32)
    probs_BK /= probs_BK.sum(axis=1, keepdims=True)
    return measure_probabilities(
        labels,
        probs_BK,
        classes,
        groups=np.arange(len(labels)).astype(str),
        image_ids=np.arange(len(labels)).astype(str),
        ood_scores=np.full(len(labels), np.nan, np.float32),
        limits=Limits(refer_below=0.5),
    )


# 60 of 72 are right; the most frequent mistake: 5 of class 0 taken for class 3.
VALID = evaluation([[17, 1, 0, 5], [2, 18, 0, 1], [0, 0, 13, 0], [2, 1, 0, 12]], CLASSES)
TEST = evaluation([[9, 1, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]], CLASSES)

FULL = Report(
    title="run-7",
    subtitle="InceptionV3 on chest-CT slices.",
    leaks=("3 images are copies, so the metrics are too good.",),
    notices=("Trained on 4 epochs only.",),
    config={"seed": 7, "model": {"backbone": "InceptionV3", "augment": {"flip": True, "angles_deg": (5, 10)}}},
    provenance={"date": "2025-11-23", "libraries": {"keras": "3.15.0"}, "git": None},
    audit={
        "counts": {"valid": {"normal": 13, "other": 59}, "train": {"normal": 148, "other": 465}},
        "errors": {"truncated": {"num_images": 2, "examples": ["train/normal/a.png", "train/normal/b.png"]}},
    },
    warnings=("3 images are copies, so the metrics are too good.", "41 near-duplicates lie in two splits."),
    history=HISTORY,
    learning_curve=CURVE,
    evaluations={"test": TEST, "valid": VALID},
)


def once(plot: Callable[..., bytes]) -> Callable[..., bytes]:
    """A plot function that draws a figure once for the same arguments."""
    drawn: dict[bytes, bytes] = {}

    def draw(*args: Any, **kwargs: Any) -> bytes:
        key = pickle.dumps((args, kwargs))
        if key not in drawn:
            drawn[key] = plot(*args, **kwargs)
        return drawn[key]

    return draw


@pytest.fixture(scope="module", autouse=True)
def figures_are_drawn_once() -> Iterator[None]:
    """Most reports here have the same figures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_history", "plot_learning_curve", "plot_confusion_matrix", "plot_roc", "plot_trust"):
            patch.setattr(reports, name, once(getattr(reports, name)))
        yield


class Page(HTMLParser):
    """Collects the tags, the text and the table rows of a page, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input", "col", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def render(report: Report) -> tuple[str, Page]:
    html = render_report(report, make_figures(report))
    return html, Page(html)


def test_report_is_self_contained():
    html, page = render(FULL)

    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", html))
    assert not re.search(r"@import|url\(", html)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href"):
            assert name not in attributes or str(attributes[name]).startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]


def test_report_is_accessible():
    _, page = render(FULL)

    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert len(page.all("img")) == 9  # two are shown in halves on a narrow screen
    assert all(attributes["alt"] and attributes["width"] for attributes in page.all("img"))
    assert all(attributes["scope"] in ("col", "row", "rowgroup") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(map(str, ids)) == sorted(str(section["aria-labelledby"]) for section in page.all("section"))


def test_report_works_in_dark_and_in_print():
    html, page = render(FULL)
    assert "@media screen and (prefers-color-scheme: dark)" in html
    assert "@media print" in html
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")


def test_report_shows_what_it_is_given():
    _, page = render(FULL)

    assert "Research tool, not a medical device." in page.text
    assert "InceptionV3 on chest-CT slices." in page.text
    assert "Trained on 4 epochs only." in page.text
    # Wilson's interval of 60 of 72 is 0.730893 to 0.902006. Mean sensitivity: 17/23, 18/21, 13/13, 12/15.
    valid = next(row for row in page.rows if row[0] == "valid" and row[1] == "72")
    assert valid[2:4] == ["83.3 %", "72.9 % to 90.3 %"]
    low, high = VALID.metrics["balanced_accuracy_ci95"]
    assert valid[5] == f"84.9 % {100 * low:.1f} to {100 * high:.1f}"
    low, high = VALID.metrics["log_loss_ci95"]
    assert valid[8] == f"{VALID.metrics['log_loss']:.3f} {low:.3f} to {high:.3f}"
    # Of 49 images of other classes 4 are taken for class 0, so its precision is 17 of 21 and its F1 34 of 44.
    of_class = VALID.metrics["per_class"][CLASSES[0]]
    figures = {"recall": "73.9 %", "specificity": "91.8 %", "precision": "81.0 %", "f1": "0.773"}
    figures |= {"roc_auc": f"{of_class['roc_auc']:.3f}"}
    with_intervals = []
    for name, figure in figures.items():
        low, high = of_class[f"{name}_ci95"]
        ends = f"{100 * low:.1f} to {100 * high:.1f}" if figure.endswith("%") else f"{low:.3f} to {high:.3f}"
        with_intervals.append(f"{figure} {ends}")
    assert [CLASSES[0], "23", *with_intervals] in page.rows
    # Class 0 of test: 9 of 10.
    assert "mean sensitivity of the classeslowest: 90.0 %, adenocarcinoma" in page.text
    assert "guessing evenly: 1.386" in page.text  # log 4
    assert "Most frequent mistake: 5 of" in page.text
    assert "Split valid, all 72 images, by true and predicted class" in page.text
    assert "Split valid, all 72 images: sensitivity against the false positive rate" in page.text
    assert ["normal", "148", "13", "161"] in page.rows
    assert ["All", "613", "72", "685"] in page.rows
    assert ["truncated", "2", "train/normal/a.png, train/normal/b.png"] in page.rows
    assert "41 near-duplicates lie in two splits." in page.text
    assert ["seed", "7"] in page.rows
    assert ["model"] in page.rows
    assert ["augment.flip", "yes"] in page.rows
    assert ["augment.angles_deg", "5, 10"] in page.rows
    assert ["keras", "3.15.0"] in page.rows
    assert ["git", "\N{EN DASH}"] in page.rows
    assert "4 epochs in 4 min 20 s." in page.text
    assert "Best: epoch 2, validation loss 0.432, validation accuracy 81.2 %." in page.text
    assert ["4", "0.2500", "87.5 %", "0.6000", "75.0 %", "0.0001", "1 min 05 s"] in page.rows


def test_overlays_are_shown_with_what_they_are_worth():
    gain = Areas(
        deletion=Interval(value=0.25, low=0.125, high=0.375), insertion=Interval(value=0.5, low=0.25, high=0.75)
    )
    area = Areas(deletion=Interval(value=0.1, low=0.05, high=0.15), insertion=Interval(value=0.9, low=0.85, high=0.95))
    found = OverlayCheck(
        num_images=30,
        num_groups=20,
        num_without=2,
        orders=dict.fromkeys((OVERLAY, RANDOM, CENTRE), area),
        gains=dict.fromkeys((RANDOM, CENTRE), gain),
        is_shown=True,
        text="Overlays point at what decides: so it is.",
    )
    _, page = render(dataclasses.replace(FULL, overlays=found))
    assert "Overlays point at what decides: so it is." in page.text
    assert "30 images of 20 patients or pictures." in page.text
    assert "2 more images have an overlay without any heat" in page.text
    areas = [["0.100", "0.050 to 0.150"], ["0.900", "0.850 to 0.950"]]
    gains = [["0.250", "0.125 to 0.375"], ["0.500", "0.250 to 0.750"]]
    by_overlay = [*areas[0], "", "", *areas[1], "", ""]
    by_chance = [*areas[0], *gains[0], *areas[1], *gains[1]]
    rows = [[cell.strip() for cell in row] for row in page.rows]
    assert ["by the Grad-CAM overlay", *by_overlay] in rows
    assert ["by the overlay at a random place", *by_chance] in rows
    assert ["from the centre outwards", *by_chance] in rows

    _, page = render(FULL)
    assert "May an overlay be believed?" not in page.text


def test_headline_is_the_test_split_and_splits_are_in_order():
    _, page = render(FULL)
    assert re.search(r"Split test, 40 images:.*\s+Accuracy97.5 %", page.text)
    assert page.text.index("Results: test") < page.text.index("Results: valid")
    (valid, test) = [row for row in page.rows if row[0] in ("valid", "test") and row[1] in ("72", "40")]
    assert (valid[0], test[0]) == ("valid", "test")
    assert "There is no test split here" not in page.text

    _, page = render(dataclasses.replace(FULL, evaluations={"valid": VALID}))
    assert re.search(r"Split valid, 72 images:.*\s+Accuracy83.3 %", page.text)
    assert "There is no test split here" in page.text


def test_what_makes_the_figures_too_good_comes_before_them():
    html, page = render(FULL)
    first = page.text.index("The numbers of this report may be too good")
    assert first < page.text.index("3 images are copies") < page.text.index("Research tool") < page.text.index("97.5 %")
    assert [attributes for attributes in page.all("div") if attributes.get("class") == "alarm"] == [
        {"class": "alarm", "role": "note"}
    ]
    # Beside the headline, over each table of figures, and by the single predictions.
    assert re.search(
        r"Split test, 40 images:\s+These numbers may be too good: see the warning at the top\.\s+Acc", page.text
    )
    assert page.text.count("These numbers may be too good: see the warning at the top.") == 5
    # Only there: the list of warnings by the data has the others.
    assert page.text.count("3 images are copies, so the metrics are too good.") == 1
    assert page.text.index("Further warnings") < page.text.index("41 near-duplicates lie in two splits.")
    assert "Not yet. The box at the top says why" in page.text

    html, page = render(dataclasses.replace(FULL, leaks=(), warnings=()))
    assert "too good" not in page.text
    assert 'class="alarm"' not in html


def test_examples_are_shown_beside_their_look_alikes():
    jpeg = base64.b64encode(b"picture").decode()
    alike = [{"label": "<b>normal</b>", "similarity": 0.875, "jpeg": jpeg}] * 3
    about = {"label": "normal", "predicted": "<i>other</i>", "confidence": 0.75, "jpeg": jpeg}
    shown = [
        about | {"kind": "wrong", "image_id": "a.png", "reason": "", "lookalikes": alike},
        about | {"kind": "uncertain", "image_id": "b.png", "reason": "ambiguous", "lookalikes": []},
    ]
    _, page = render(Report(title="run", evaluations={"test": TEST}, examples=shown))
    assert "Wrong, and accepted all the same" in page.text
    assert "Referred to a person as uncertain" in page.text
    assert "Right, and accepted" not in page.text
    assert page.text.count("predicted: <i>other</i> (75.0 %)true class: normal") == 2
    assert page.text.count("Referred: several classes may be right.") == 1
    assert page.text.count("in training: <b>normal</b>similarity 0.88") == 3
    assert "not evidence" in page.text
    assert "Some images of the split test as the model sees them" in page.text
    pictures = [image for image in page.all("img") if str(image["src"]) == f"data:image/jpeg;base64,{jpeg}"]
    assert [image["alt"] for image in pictures] == ["a.png", *["Training image of <b>normal</b>"] * 3, "b.png"]
    assert page.text.index("May a single prediction be believed?") < page.text.index("Examples")
    assert page.text.index("Examples") < page.text.index("Results: test")

    _, page = render(Report(title="run", evaluations={"test": TEST}, examples=shown[1:]))
    assert "not evidence" not in page.text  # the bundle keeps no training images
    _, page = render(Report(title="run", evaluations={"test": TEST}))
    assert "Examples" not in page.text


def test_settings_are_shown_as_people_write_them():
    trials = [
        {"inverse_penalty": 1e-05, "valid_loss": 0.43219876, "best": False},
        {"inverse_penalty": 10.0, "valid_loss": 0.5, "best": True},
    ]
    config = {
        "probe": {"best": {"inverse_penalty": 1e-05}, "trials": trials},
        "pairs": [{"a": 1}, {"b": [2, None]}],
        "ranges": ((0, 1), (2, 3)),
        "flags": (True, False),
    }
    _, page = render(Report(title="run", config=config))
    rows = [[cell.strip() for cell in row] for row in page.rows]
    assert not re.search(r"[{}()\[\]']|True|False|None", " ".join(cell for row in rows for cell in row))
    assert ["inverse_penalty", "valid_loss", "best"] in rows
    assert ["1e-05", "0.4322", "no"] in rows
    assert ["10", "0.5", "yes"] in rows
    assert ["best.inverse_penalty", "1e-05"] in rows
    assert ["pairs", "a: 1, b: 2, \N{EN DASH}"] in rows
    assert ["ranges", "0, 1, 2, 3"] in rows
    assert ["flags", "yes, no"] in rows


def test_classes_whose_names_cannot_be_drawn_are_numbered():
    report = Report(title="run", evaluations={"test": evaluation([[3, 1], [1, 3]], ("肺", "normal"))})
    page = Page(render_report(report, make_figures(report, families=()), families=()))
    assert [row[:3] for row in page.rows if row[-1] and row[0] in ("1", "2")] == [
        ["1", "肺", "4"],
        ["2", "normal", "4"],
    ]
    assert "Numbers stand for the classes of the table above" in page.text
    _, page = render(FULL)
    assert "Numbers stand for" not in page.text
    assert "No." not in [row[0] for row in page.rows]


def test_many_classes_make_no_large_report():
    classes = tuple(f"class {index}" for index in range(120))
    report = Report(title="run", evaluations={"test": evaluation(np.eye(120, dtype=int).tolist(), classes)})
    html, page = render(report)
    assert len(html) < 1_000_000
    assert [row[0] for row in page.rows if row[0] in classes] == list(classes)
    assert "colours show the shares of each row" in page.text
    assert "Colours mark the 10 classes with the smallest areas" in page.text


def test_images_are_the_figures():
    figures = make_figures(FULL)
    assert list(figures) == [
        "history.png",
        "learning_curve.png",
        "confusion_matrix_test.png",
        "roc_test.png",
        "confusion_matrix_valid.png",
        "roc_valid.png",
        "trust_test.png",
    ]
    page = Page(render_report(FULL, figures))
    shown = [image for image in page.all("img") if image.get("class") != "half"]
    embedded = [base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) for image in shown]
    assert sorted(embedded) == sorted(figures.values())


@pytest.mark.parametrize("name", ["<b>bold</b>", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b"])
def test_everything_is_escaped(name: str):
    report = Report(
        title=name,
        subtitle=name,
        leaks=(name,),
        notices=(name,),
        config={name: name, "nested": {name: [name]}},
        provenance={name: {name: name}},
        audit={"counts": {name: {name: 3}}, "errors": {name: {"num_images": 1, "examples": [name]}}},
        warnings=(name,),
        evaluations={name: evaluation([[3, 1, 0], [1, 3, 0], [0, 0, 0]], (name, "other", f"absent {name}"))},
    )
    html, page = render(report)
    assert name not in html
    assert page.text.count(name) >= 14
    assert {"b", "script"} & {tag for tag, _ in page.tags} <= {"b"}
    assert len(page.all("img")) == 4
    assert len(page.all("b")) == 1  # the mark on the interval


def test_smallest_report():
    html, page = render(Report(title="empty"))
    assert page.all("img") == []
    assert [heading for heading in ("Summary", "Training", "Data", "Provenance") if heading in page.text] == []
    assert "Research tool, not a medical device." in page.text
    assert "What this report cannot tell" not in page.text  # there are no numbers
    assert "None" not in html


@pytest.mark.parametrize(
    ("audit", "shows_none"),
    [({}, False), ({"counts": {}}, False), ({"errors": {}}, True), ({"errors": {"empty": {}}}, False)],
)
def test_audit_with_missing_keys(audit: dict[str, object], shows_none: bool):
    _, page = render(Report(title="run", audit=audit))
    assert ("None." in page.text) == shows_none
    assert "Images by class and split" not in page.text or audit.get("counts")


@pytest.mark.parametrize("is_named", [True, False])
def test_patients_are_counted_beside_the_images_where_they_are_named(is_named: bool):
    named = {"num_groups": 8, "num_unnamed": 0, "num_patients": 7, "by_class": {"a": 5, "b": 3}}
    groups = named if is_named else {"num_groups": 9}
    counts = {"train": {"a": 5, "b": 1}, "valid": {"b": 3}}
    _, page = render(Report(title="run", audit={"counts": counts, "num_readable": 9, "groups": groups}))
    table = [row for row in page.rows if row[0] in ("Class", "a", "b", "All")]
    expected = [
        ["Class", "train", "valid", "All", "Patients"],
        ["a", "5", "0", "5", "5"],
        ["b", "1", "3", "4", "3"],
        ["All", "6", "3", "9", "7"],
    ]
    assert table == [row if is_named else row[:-1] for row in expected]


def test_the_patients_of_a_class_are_not_counted_if_one_of_its_images_has_none():
    groups = {"num_groups": 7, "num_unnamed": 1, "num_patients": None, "by_class": {"b": 3}}
    counts = {"train": {"a": 5, "b": 1}, "valid": {"b": 3}}
    _, page = render(Report(title="run", audit={"counts": counts, "num_readable": 9, "groups": groups}))
    assert [row[-1] for row in page.rows if row[0] in ("Class", "a", "b", "All")] == ["Patients", "", "3", ""]


def test_undefined_values_are_explained():
    absent = evaluation([[3, 0, 1], [0, 4, 0], [0, 0, 0]], ("a", "b", "c"))
    _, page = render(Report(title="run", evaluations={"test": absent}))
    dash = "\N{EN DASH}"
    assert ["c", "0", dash, dash, dash, dash, dash] in page.rows
    assert absent.metrics["notes"]["roc_auc_ovr_macro"] in page.text


def test_epoch_0_is_the_probe():
    probe = HISTORY[0] | {"epoch": 0, "loss": 0.1, "valid_loss": 0.45, "learning_rate": 1e-4, "time_s": 0.0}
    _, page = render(Report(title="run", history=[probe, *HISTORY]))
    assert "4 epochs in 4 min 20 s." in page.text
    assert "Best: epoch 2," in page.text
    assert "Epoch 0 is the linear probe that fine-tuning starts from" in page.text
    assert page.rows[1][:3] == ["0 (probe)", "0.1000", "50.0 %"]
    assert page.rows[2][0] == "1"
    assert "over 4 epochs, and of the probe before them" in str(page.all("img")[0]["alt"])

    _, page = render(Report(title="run", history=[probe | {"valid_loss": 0.4}, *HISTORY]))
    assert "Best: epoch 0 (probe), validation loss 0.400" in page.text

    _, page = render(Report(title="run", history=HISTORY))
    assert "probe" not in page.text
    assert str(page.all("img")[0]["alt"]).endswith("over 4 epochs")


def test_learning_curve_in_numbers():
    _, page = render(FULL)
    # (0.8125 + 0.75 + 0.8125) / 3 is 0.79167.
    assert ["5", "18", "3", "62.5 %", "40.0 % to 80.0 %", "50.0 %", "75.0 %"] in page.rows
    assert ["20", "60", "3", "79.2 %", "50.0 % to 90.0 %", "75.0 %", "81.2 %"] in page.rows
    assert ["all", "613", "1", "93.8 %", "70.0 % to 99.0 %", "93.8 %", "93.8 %"] in page.rows
    assert "Accuracy on all test images of linear probes" in page.text
    assert "validation images that the penalties were chosen with, so it is too high" not in page.text
    (alt,) = [str(image["alt"]) for image in page.all("img") if str(image["alt"]).startswith("Accuracy on test images")]
    assert "62.5 % with 18, 93.8 % with 613;" in alt

    _, page = render(dataclasses.replace(FULL, evaluations={"valid": VALID}))
    assert "Accuracy on all validation images of linear probes" in page.text
    assert "validation images that the penalties were chosen with, so it is too high" in page.text

    _, page = render(dataclasses.replace(FULL, learning_curve=()))
    assert "Learning curve" not in page.text


def test_diverged_run_is_reported():
    _, page = render(Report(title="run", history=history_rows([float("nan")] * 2, [1e-3] * 2)))
    assert "No epoch has a finite validation loss." in page.text


def test_empty_history_is_no_figure():
    assert make_figures(Report(title="run", history=[])) == {}


KNOWS = {
    "num_leaked": 0,
    "leak_free": None,
    "subgroups": {
        "num_looked_at": 7,
        "lowest": [
            {
                "column": "scanner",
                "value": value,
                "num_images": 20,
                "num_groups": 15,
                "accuracy": accuracy,
                "accuracy_ci95": [accuracy - 0.25, accuracy + 0.25],
                "is_worse": accuracy < 0.7,
            }
            for value, accuracy in (("old & <worn>", 0.5), ("new", 0.75))
        ],
    },
}


def with_metrics(**changed: Any) -> SplitEvaluation:
    return dataclasses.replace(TEST, metrics={**TEST.metrics, **KNOWS, **changed})


def leaked_valid(*, accuracy: float) -> SplitEvaluation:
    """The evaluation of valid with 3 images that the model knows, and this accuracy on the others."""
    new = {**VALID.metrics, "accuracy": accuracy}
    return dataclasses.replace(VALID, metrics={**VALID.metrics, "num_leaked": 3, "leak_free": new})


def test_figures_of_all_images_are_called_too_good_only_if_those_of_new_ones_are_lower():
    """Of all valid images 83.3 % are right."""
    for accuracy, verb in ((0.75, "are"), (0.9, "may be"), (60 / 72, "may be")):
        valid = leaked_valid(accuracy=accuracy)
        _, page = render(dataclasses.replace(FULL, evaluations={"valid": valid, "test": with_metrics()}))
        assert f"Some numbers of this report {verb} too good" in page.text
        assert page.text.count(f"The numbers of all images {verb} too good: see the warning at the top.") == 1
        assert f"The numbers of valid (all images) {verb} too good: see the warning at the top." in page.text


def test_figures_without_leaked_images_are_not_called_too_good():
    """Copies lie between train and valid; no test image has one."""
    known = leaked_valid(accuracy=0.75)
    report = dataclasses.replace(FULL, evaluations={"valid": known, "test": with_metrics()})
    _, page = render(report)
    assert "Some numbers of this report are too good" in page.text
    assert re.search(r"Split test, 40 images:\s+Accuracy", page.text)
    assert "None of the test images is known to have a copy, or another image of its patient," in page.text
    # Over the results of valid, and over the table of all splits, with the split's name.
    assert page.text.count("The numbers of all images are too good: see the warning at the top.") == 1
    assert "The numbers of valid (all images) are too good: see the warning at the top." in page.text
    assert "Not without care. The box at the top says why" in page.text
    assert "These numbers are" not in page.text
    # An evaluation of test alone, whose data is known to have copies in valid.
    _, page = render(dataclasses.replace(report, evaluations={"test": with_metrics()}))
    assert "Figures of other images of this data set may be too good" in page.text
    assert "numbers of this report" not in page.text

    audit = {**(FULL.audit or {}), "neighbours": {"valid": 0, "test": 12}}
    _, page = render(dataclasses.replace(report, audit=audit))
    assert "But 12 of them look like slices of the same series as images that it learned from" in page.text
    assert "The numbers of valid (all images) and test (probably) are too good: see the warning" in page.text
    assert page.text.count("These numbers are probably too good, because of neighbouring slices") == 3
    assert "Not yet." in page.text


# TEST is right more often than its confidence says: in 97.5 %, with a confidence of 0.6 to 0.8.
SOUND = {"ece": 0.0625, "ece_ci95": [0.0, 0.125]}


def test_an_evaluation_says_how_it_searched_for_images_that_the_model_knows():
    search = {"among": "nothing", "num_compared": 0, "num_pictures": None, "is_own": False, "knows_splits": False}
    sound = dataclasses.replace(TEST, metrics={**TEST.metrics, **SOUND})
    report = Report(title="Evaluation", audit={"leak_search": search}, evaluations={"all": sound})
    _, page = render(report)
    assert "Has the model seen these images before? Not known. The bundle keeps no pictures" in page.text
    assert "No check in this report speaks against it, but none tells whether the model needs the anatomy." in page.text

    blind = {**search, "is_own": True}
    _, page = render(dataclasses.replace(report, audit={"leak_search": blind}))
    assert "Has the model seen these images before? Careful. Not known." in page.text
    assert "give the manifest.parquet of its run as --data." in page.text

    new = {**TEST.metrics, "num_images": 30}
    some = dataclasses.replace(TEST, metrics={**TEST.metrics, "num_leaked": 10, "leak_free": new})
    pictures = {**search, "among": "pictures", "num_compared": 70, "num_pictures": 70}
    _, page = render(dataclasses.replace(report, audit={"leak_search": pictures}, evaluations={"all": some}))
    assert "the 30 of 40 images that are new to the model" in page.text
    assert "10 of the 40 measured images: each has a copy among the training images." in page.text
    assert "They were compared with pictures of all training images (70 in the bundle)." in page.text


def test_what_the_first_section_answers():
    sound = dataclasses.replace(TEST, metrics={**TEST.metrics, **SOUND})
    report = dataclasses.replace(FULL, leaks=(), evaluations={"test": sound})
    _, page = render(report)
    assert "May I believe this?" in page.text
    assert "No check in this report speaks against it, but none tells whether the model needs the anatomy." in page.text
    assert "Careful." not in page.text

    control = {"accuracy": 0.3, "chance": 0.25, "split": "test", "is_above_chance": False}
    _, page = render(dataclasses.replace(report, audit={**(FULL.audit or {}), "traits_control": control}))
    assert "No check in this report speaks against it. The interval says" in page.text

    _, page = render(dataclasses.replace(FULL, leaks=(), evaluations={"test": with_metrics(**SOUND)}))
    assert "Not without care. Of the 4 answers in this report, 1 is a reason for doubt, marked “Careful”." in page.text
    assert page.text.count("Careful.") == 1


def test_what_by_chance_means_is_told_only_beside_controls():
    control = {"accuracy": 0.5, "chance": 0.25, "split": "test", "is_above_chance": True}
    others = {"neighbour_control": None, "permuted_control": None}
    for traits, is_told in ((control, True), (None, False)):
        _, page = render(Report(title="run", audit={"traits_control": traits, **others}, evaluations={"test": TEST}))
        assert ("“By chance”: how often the same answers are right" in page.text) == is_told
        assert "Does it need the anatomy?" in page.text
        assert "measured, because" in page.text


def test_a_confidence_that_is_surely_far_off_is_a_reason_for_doubt():
    assert TEST.metrics["ece_ci95"][0] > 0.1
    _, page = render(dataclasses.replace(FULL, leaks=(), evaluations={"test": TEST}))
    assert "Not without care. Of the 2 answers in this report, 1 is a reason for doubt, marked “Careful”." in page.text
    assert "Can its confidence be read as a probability? Careful. The confidence is on average" in page.text


def test_subgroups_are_listed_the_worst_first_with_how_many_were_looked_at():
    html, page = render(dataclasses.replace(FULL, evaluations={"test": with_metrics()}))
    rows = [[*row[:5], row[6]] for row in page.rows if row and row[0].startswith("scanner: ")]
    assert rows == [
        ["scanner: old & <worn>", "20", "15", "50.0 %", "25.0 % to 75.0 %", "yes"],
        ["scanner: new", "20", "15", "75.0 %", "50.0 % to 100.0 %", "no"],
    ]
    assert "<worn>" not in html
    assert "2 of 7 subgroups with at least ten images, the worst first" in page.text
    assert "significantly worse than overall (97.5 %) for scanner old & <worn> 50.0 %" in page.text
    assert page.text.index("Subgroups of images") < page.text.index("What this report cannot tell")


def test_sets_and_referral_are_said_in_words():
    values = {
        "set_coverage": 0.8,
        "set_coverage_ci95": [0.7, 0.88],
        "mean_set_size": 1.25,
        "mean_set_size_ci95": [1.0, 1.5],
        "num_referred": 1,
        "accepted_error_rate": 0.2,
        "accepted_error_rate_ci95": [0.1, 0.3],
    }
    trust = {
        "referral": {"max_error": 0.05, "note": "No threshold."},
        "sets": {"alpha": 0.1},
        "num_images": 584,
        "origin": "images",
    }
    _, page = render(dataclasses.replace(FULL, trust=trust, evaluations={"test": with_metrics(**values)}))
    assert re.search(
        r"True class in the prediction set80\.0 %95 % interval70\.0 % to 88\.0 %of the images; 90 % were wanted\s+"
        r"Classes in a set1\.295 % interval1\.0 to 1\.5on average, of 4\s",
        page.text,
    )
    assert "with 1.2 classes on average (95 % interval 1.0 to 1.5)" in page.text
    assert "significantly less often than in the 90 % that were wanted" in page.text
    assert "No threshold keeps errors at 5 %, as far as 584 images can show" in page.text
    assert "The threshold was chosen so that" not in page.text


def test_every_tile_has_the_interval_of_its_figure():
    values = {
        "set_coverage": 0.8,
        "set_coverage_ci95": [0.7, 0.88],
        "mean_set_size": 1.25,
        "mean_set_size_ci95": [1, 2],
    }
    values |= {"referred_share": 0.25, "referred_share_ci95": [0.125, 0.5]}
    html, page = render(dataclasses.replace(FULL, evaluations={"test": with_metrics(**values)}))
    tiles = re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", re.sub("</?span[^>]*>", "", html))
    assert [name for name, _ in tiles] == [
        *("Accuracy", "Balanced accuracy", "Macro F1", "AUROC", "Log loss", "Accepted", "Wrong among those"),
        *("Calibration error", "Brier score", "True class in the prediction set", "Classes in a set"),
    ]
    assert all(
        re.search(r"^[\d.]+( %)?<small>95 % interval<br>[\d. %]+ to [\d. %]+</small>", tile) for _, tile in tiles
    )
    # The interval of the accepted is that of the referred, the other way round.
    assert "Accepted75.0 %95 % interval50.0 % to 87.5 %" in page.text
    low = TEST.metrics["ece_ci95"][0]
    assert f"Calibration error{100 * TEST.metrics['ece']:.1f} %95 % interval{100 * low:.1f} % to " in page.text
    assert "at most 2guessing evenly: 0.750" in page.text


def test_that_a_model_is_not_calibrated_is_told_with_the_reason():
    why = "Not calibrated: 20 independent images are fewer than 10 for each class."
    calibration = {"temperature": 1.0, "biases": [0.0, 0.0], "ece_before": 0.125, "ece": 0.125, "note": why}
    calibration |= {"brier_before": 0.25, "brier": 0.25, "brier_ci95": [0.125, 0.5]}
    trust = {"calibration": calibration, "num_images": 40, "origin": "images"}
    _, page = render(dataclasses.replace(FULL, trust=trust))
    assert (
        f"{why} The calibration error on 40 images is 12.5 %, and the Brier score 0.250 (95 % interval 0.125 to "
        "0.500): the mean squared distance" in page.text
    )
    assert "Calibrated on" not in page.text


def test_a_calibration_is_told_with_its_intervals():
    calibration = {"temperature": 1.5, "ece_before": 0.125, "ece": 0.0625, "note": ""}
    trust = {"calibration": calibration, "num_images": 584, "origin": "images"}
    _, page = render(dataclasses.replace(FULL, trust=trust))
    assert "was 12.5 % before and is 6.2 % after." in page.text  # a bundle of an earlier version
    assert "The Brier score on these images" not in page.text
    calibration |= {"ece_before_ci95": [0.0625, 0.25], "ece_ci95": [0.0, 0.125]}
    calibration |= {"brier_before": 0.375, "brier": 0.25, "brier_before_ci95": [0.25, 0.75], "brier_ci95": [0.125, 0.5]}
    _, page = render(dataclasses.replace(FULL, trust=trust))
    assert (
        "was 12.5 % (95 % interval 6.2 % to 25.0 %) before and is 6.2 % (95 % interval 0.0 % to 12.5 %) after."
        in page.text
    )
    assert (
        "The Brier score on these images was 0.375 (95 % interval 0.250 to 0.750) before and is 0.250 (95 % interval "
        "0.125 to 0.500) after. It is the mean squared distance of the probabilities from the true class" in page.text
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["train", "valid"], "All splits. The data has no split test: tlray cut it from train."),
        (["train"], "All splits. The data has no split valid and test: tlray cut them from train."),
        ([], "All splits. The data has no split valid and test: tlray cut them from train."),
        (["train", "valid", "test"], None),
        (None, None),  # by an earlier version
    ],
)
def test_splits_that_tlray_has_cut_are_told(given, text):
    assert FULL.audit is not None
    found = {} if given is None else {"split_shortcuts": {"given": given, "found": [], "together": None}}
    _, page = render(dataclasses.replace(FULL, audit={**FULL.audit, **found}))
    assert text in page.text if text else "tlray cut" not in page.text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"long_series": {"num_images": 0, "classes": []}}, "its patient, its copies and its neighbouring slices."),
        (
            {"long_series": {"num_images": 9, "classes": ["a"]}},
            "its patient and its copies, but perhaps with neighbouring slices.",
        ),
        ({}, "its patient and its copies, but perhaps with neighbouring slices."),  # by an earlier version
    ],
)
def test_the_report_says_whether_neighbouring_slices_were_held_out_together(found, text):
    assert FULL.audit is not None
    _, page = render(dataclasses.replace(FULL, audit={**FULL.audit, **found}, history=None, cross_validation=VALID))
    assert f"predicted by a probe that was fitted without it, {text}" in page.text


@pytest.mark.parametrize(("losses", "is_tuned"), [([1.0, 0.5], True), ([0.5, 1.0], False), ([], False)])
def test_that_cross_validation_leaves_out_fine_tuning_is_said_only_of_a_fine_tuned_model(losses, is_tuned):
    history = [HISTORY[0] | {"epoch": epoch, "valid_loss": loss} for epoch, loss in enumerate(losses)]
    _, page = render(dataclasses.replace(FULL, history=history, cross_validation=VALID))
    assert "Cross-validation: linear probes on the training and validation images" in page.text
    assert ("does not tell what fine-tuning adds" in page.text) is is_tuned


def test_shortcuts_are_a_sentence_and_a_table():
    test = {
        "family": "corners",
        "told": "normal",
        "accuracy": 0.84,
        "majority": 0.75,
        "balanced_accuracy": 0.8,
        "balanced_accuracy_ci95": [0.75, 0.875],
        "chance": 0.5,
        "p_value": 0.0005,
        "trait": "top_left_mean",
    }
    audit = {"shortcuts": {"found": [test], "together": test, "num_images": 60, "num_folds": 5}}
    _, page = render(Report(title="Audit", audit=audit, shortcuts=("Classes can be told: 0.80.",)))
    name = "mean grey level of the top left corner"
    assert ["corners", "normal from the rest", "0.80 (by guessing 0.50) 0.75 to 0.88", name] in page.rows
    assert page.text.index("Classes can be told: 0.80.") < page.text.index(name)
    assert page.text.index(name) < page.text.index("Research tool")
    told = "tell the classes with a balanced accuracy of 0.80 (95 % interval 0.75 to 0.88; by guessing 0.50). Cross"
    assert told in page.text
    assert "on 60 images in 5 folds; patients and copies stay together, and so do neighbouring slices." in page.text


def test_the_table_of_copies_says_what_it_counts():
    def found(num_groups: int, num_images: int, across: tuple[int, int]) -> dict[str, Any]:
        return {
            "num_groups": num_groups,
            "num_images": num_images,
            "across_splits": {"num_groups": across[0], "num_images": across[1]},
            "conflicting_labels": {"num_groups": 1, "num_images": 2},
        }

    copies = {
        "identical": found(59, 166, (8, 44)),
        "copies": found(69, 270, (5, 74)),
        "series": found(113, 505, (52, 308)),
    }
    _, page = render(Report(title="Audit", audit={"copies": copies}))
    assert ["the same pixels", "59", "166", "8", "44", "1", "2"] in page.rows
    assert ["copies: one picture, changed or not", "69", "270", "5", "74", "1", "2"] in page.rows
    assert "so it can have more images in fewer groups" in page.text
    assert "Images with a copy (the second row) among those that the model learned from are left out" in page.text


def test_copies_that_do_no_harm_are_folded_and_names_are_short_where_they_stay_unique():
    def group(labels: list[str | None], *, has_labels: bool = False, has_splits: bool = False) -> dict[str, Any]:
        images = [{"image_id": "a.png", "split": "train", "label": label, "jpeg": ""} for label in labels]
        return {"has_labels": has_labels, "has_splits": has_splits, "num_images": 5, "images": images}

    gallery = [group([CLASSES[0], CLASSES[1]], has_labels=True), group([None], has_splits=True), group(["normal"])]
    nothing = {"num_groups": 0, "num_images": 0}
    found = nothing | {"across_splits": nothing, "conflicting_labels": nothing}
    copies = dict.fromkeys(("identical", "copies", "series"), found)
    audit = {"copies": copies, "counts": {"train": dict.fromkeys(CLASSES, 9)}}
    html, page = render(Report(title="Audit", audit=audit, gallery=gallery))
    folded = page.text.index("1 more group of copies, each with one label and in one split")
    assert page.text.index("2 of 5 images of one picture, with several labels.") < folded
    assert page.text.index("1 of 5 images of one picture, in several splits.") < folded
    assert folded < page.text.index("1 of 5 images of one picture.")
    assert html.count("<details>") == 1
    assert "trainadenocarcinoma" in page.text
    assert {"title": CLASSES[0]} in page.all("span")
    assert "trainno label" in page.text


def test_neighbouring_slices_have_a_heading_of_their_own():
    def group(kind: str, num_images: int, *, has_splits: bool) -> dict[str, Any]:
        images = [
            {"image_id": f"{number}.png", "split": split, "label": "normal", "jpeg": ""}
            for number, split in enumerate(("train", "test" if has_splits else "train"))
        ]
        about = {"has_labels": False, "has_splits": has_splits, "num_images": num_images}
        return about | {"kind": kind, "images": images}

    nothing = {"num_groups": 1, "num_images": 2}
    found = nothing | {"across_splits": nothing, "conflicting_labels": nothing}
    audit = {"copies": dict.fromkeys(("identical", "copies", "series"), found)}
    gallery = [group("copies", 2, has_splits=True)]
    _, page = render(Report(title="Audit", audit=audit, gallery=gallery))
    assert "Neighbouring slices" not in page.text

    gallery += [group("neighbours", 5, has_splits=True), group("neighbours", 2, has_splits=False)]
    html, page = render(Report(title="Audit", audit=audit, gallery=gallery))
    heading, folded = page.text.index("Neighbouring slices"), page.text.index("1 more group of neighbouring slices")
    assert page.text.index("2 images of one picture, in several splits.") < heading
    assert heading < page.text.index("2 of 5 pictures of one series, in several splits.") < folded
    assert folded < page.text.index("2 pictures of one series.")
    assert html.count("<details>") == 1
    assert "groups of copies" not in page.text  # all of them are shown
    assert "the metrics are too good: name the patients, by one folder" in page.text

    named = audit | {"groups": {"num_groups": 4, "num_unnamed": 0, "by_class": {}}}
    _, page = render(Report(title="Audit", audit=named, gallery=gallery))
    assert "the metrics are too good: give that patient one name." in page.text


def test_a_warning_that_an_answer_gives_is_not_said_again():
    trust = {"referral": {"max_error": 0.05, "note": "No threshold keeps errors at 5 %, so 0.5 is taken."}}
    values = {"num_referred": 1, "accepted_error_rate": 0.2, "set_coverage": None}
    warnings = (f"{trust['referral']['note']} Add images.", "Something else.")
    question = "Has the model seen these images before?"
    warnings += (
        f"{question} None of the test images is known to have a copy, or another image of its patient, among those "
        "that the model learned from.",
    )
    report = Report(title="run", trust=trust, warnings=warnings, evaluations={"test": with_metrics(**values)})
    _, page = render(report)
    assert "Something else." in page.text
    assert page.text.count(question) == 1
    assert "so 0.5 is taken" not in page.text
    assert "No threshold keeps errors at 5 %: the model refers hardly anything" in page.text


def test_nothing_is_cut_on_paper_and_tables_scroll_on_a_phone():
    html, _ = render(FULL)
    style = html[html.index("<style>") : html.index("</style>")]
    paper = style[style.index("@media print") :]
    assert re.search(r"figure,[^{]*\btr \{ break-inside: avoid; \}", paper)
    assert re.search(r"\* \{ print-color-adjust: exact;", paper)
    assert re.search(r"\.wide \{ overflow: visible;[^}]* break-inside: avoid; \}", paper)
    assert "summary { list-style: none; }" in paper  # what it folds is shown
    # Sizes in rem, such as that of notes, are relative to the body's.
    assert re.search(r":root \{ font-size: 10pt; \}\s+body \{[^}]*font-size: 1rem; \}", paper)
    assert ".scrolls::before { content: none; }" in paper
    assert "Swipe the table sideways" in style[style.index("@media (max-width: 40rem)") :]
    assert 'class="wide scrolls"' in html
    # Words stay whole in a table, also in a box whose text may be broken anywhere.
    assert re.search(r"\.wide table \{ overflow-wrap: normal; \}", style)
    # Every table but that of the settings, whose cells wrap, has its own box.
    tables = re.findall(r"(<div class=\"wide[ a-z]*\">)?<table( class=\"settings\")?", html)
    assert tables
    assert all(bool(box) != bool(settings) for box, settings in tables)


def test_what_tells_the_splits_is_said_only_if_the_data_gives_several():
    test = {
        "family": "size",
        "told": None,
        "accuracy": 0.9,
        "majority": 0.75,
        "balanced_accuracy": 0.625,
        "balanced_accuracy_ci95": [0.5, 0.75],
        "chance": 0.5,
        "p_value": 0.0005,
        "trait": "width_px",
    }
    nothing: dict[str, Any] = {"found": [], "together": None, "num_images": 0, "num_folds": 0}
    told = {"found": [test], "together": test, "num_images": 60, "num_folds": 5, "given": ["train", "test"]}

    def shown(split_shortcuts: dict[str, Any]) -> Page:
        audit = {"shortcuts": nothing, "split_shortcuts": split_shortcuts}
        return render(Report(title="Audit", audit=audit))[1]

    page = shown(told)
    assert (
        "tell the splits with a balanced accuracy of 0.62 (95 % interval 0.50 to 0.75; by guessing 0.50), "
        "cross-validated in the same way on 60 images. So the images of the splits may be from different sources."
    ) in page.text
    assert [row[:3] for row in page.rows if row[:1] == ["size"]] == [
        ["size", "all splits", "0.62 (by guessing 0.50) 0.50 to 0.75"]
    ]
    assert "tells the splits of images" in page.text
    page = shown(told | {"found": []})
    assert "No group of traits tells the splits surely." in page.text
    assert page.rows == []
    assert "What tells the splits was not tested" in shown(nothing | {"given": ["train", "test"]}).text
    for unknown in (nothing, told | {"given": ["train"]}):
        assert "the splits" not in shown(unknown).text


def test_that_files_do_as_well_is_said_first_in_the_red_box():
    """The model is right in 97.5 % (95 % interval from 87 %) of the test images."""
    control = {"accuracy": 0.95, "chance": 0.25, "split": "test", "is_above_chance": True}
    report = Report(
        title="run",
        audit={"traits_control": control},
        shortcuts=("Sizes tell.", "Corners, too."),
        evaluations={"test": TEST},
    )
    sentence = (
        "The model is not shown to be better than a look at how the files were made: it is right in 97.5 % of the "
        "test images, a random forest that sees nothing else in 95.0 %."
    )
    _, page = render(report)
    assert f"{sentence} Sizes tell." in page.text
    assert page.text.count(sentence) == 1
    for changed in ({"accuracy": 0.5}, {"split": "valid"}, {"is_above_chance": False}):
        _, page = render(dataclasses.replace(report, audit={"traits_control": control | changed}))
        assert "Sizes tell." in page.text
        assert "not shown to be better" not in page.text


def test_new_images_may_be_neighbouring_slices():
    known = leaked_valid(accuracy=0.75)
    text = "Suspected neighbouring slices of images that it learned from count as new, too: 28 in valid."
    for neighbours, is_told in (({"valid": 28, "test": 0}, True), ({"valid": 0, "test": 0}, False)):
        audit = {**(FULL.audit or {}), "neighbours": neighbours}
        _, page = render(dataclasses.replace(FULL, audit=audit, evaluations={"valid": known, "test": with_metrics()}))
        assert "New images are those of which the model knows no copy" in page.text
        assert (text in page.text) == is_told


def test_copies_with_several_labels_are_told_beside_the_headline_if_they_are_of_its_split():
    nothing = {"num_groups": 0, "num_images": 0}
    images = [{"image_id": name, "split": "test", "label": name} for name in "ab"]
    conflict = {"num_groups": 1, "num_images": 2, "examples": [{"images": images}]}
    copies = dict.fromkeys(
        ("identical", "copies", "series"), nothing | {"across_splits": nothing, "conflicting_labels": conflict}
    )
    report = dataclasses.replace(FULL, audit={**(FULL.audit or {}), "copies": copies})
    _, page = render(report)
    answer = "No: 2 of the test images have a copy with another label."
    assert page.text.index("Does each picture have one label? Careful. " + answer) < page.text.index("All splits.")
    _, page = render(dataclasses.replace(report, evaluations={"valid": VALID}))
    assert "Does each picture have one label?" not in page.text


def test_tiles_fill_their_rows():
    html, _ = render(FULL)
    assert re.findall(r'<dl class="([^"]*)"', html) == ["tiles five", "tiles four"]
    with_sets = {
        "set_coverage": 0.8,
        "set_coverage_ci95": [0.7, 0.88],
        "mean_set_size": 1.2,
        "mean_set_size_ci95": [1, 2],
    }
    html, _ = render(dataclasses.replace(FULL, evaluations={"test": with_metrics(**with_sets)}))
    assert re.findall(r'<dl class="([^"]*)"', html) == ["tiles five", "tiles six"]


def test_panels_are_named_by_their_titles_as_they_are_stacked_on_a_phone():
    _, page = render(FULL)
    assert "“Right, by confidence”: the nearer" in page.text
    assert "“Wrong among those accepted”: the share" in page.text
    assert "The star is what the confidence threshold alone would do." in page.text
    assert not re.search(r"\b(Left|Right): ", page.text)
