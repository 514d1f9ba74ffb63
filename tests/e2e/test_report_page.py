"""The report in a browser: on a phone nothing is cut off."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import Browser
from tlray.bundle.judgement import Limits
from tlray.config.recipes import standard
from tlray.evaluation.measurement import measure_probabilities
from tlray.evaluation.report import Report, make_figures, render_report

CLASSES = ("adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib", "squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa", "肺")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with all its tables, long names, and paths without a space."""
    labels = np.arange(30) % 3
    probs_BK = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    evaluation = measure_probabilities(
        labels,
        probs_BK,
        CLASSES,
        groups=labels.astype(str),
        image_ids=np.arange(len(labels)).astype(str),
        ood_scores=np.full(len(labels), np.nan, np.float32),
        limits=Limits(refer_below=0.5),
    )
    path = "/".join(["a-long-folder-name"] * 6)
    epoch = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "valid_loss": 1.0, "valid_accuracy": 0.5, "learning_rate": 1e-3}
    trials = [{"inverse_penalty": 10.0**k, "valid_loss": 0.5, "valid_accuracy": 0.875} for k in range(-5, 2)]
    report = Report(
        title=path,
        subtitle=f"probed on {path}",
        leaks=(f"2 images are copies, for example '{path}'.",),
        config=dataclasses.asdict(standard(path, path)) | {"probe": {"best": trials[0], "trials": trials}},
        provenance={"data_fingerprint": "d" * 64, "libraries": {"keras": "3.15.0"}},
        audit={
            "counts": {split: dict.fromkeys(CLASSES, 10) for split in ("train", "valid", "test")},
            "errors": {"unsupported_format": {"num_images": 2, "examples": [path, path]}},
        },
        warnings=(path,),
        history=[epoch | {"time_s": 60.0}],
        learning_curve=[
            {"images_per_class": None, "num_images": 30, "accuracies": (0.5,), "accuracy_ci95": (0.2, 0.8)}
        ],
        evaluations={"valid": evaluation, "test": evaluation},
    )
    file = tmp_path / "report.html"
    file.write_text(render_report(report, make_figures(report)), encoding="utf-8")
    return file


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    yield browser
    browser.driver.quit()


@pytest.mark.parametrize("width_px", [360, 1280])
def test_what_does_not_fit_can_be_scrolled_to(browser: Browser, page: Path, width_px: int):
    driver = browser.driver
    screen = {"width": width_px, "height": 740, "deviceScaleFactor": 1, "mobile": width_px < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(page.as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width_px, width_px]
    outside = driver.execute_script(
        """
        const scrolls = (element) => element && (getComputedStyle(element).overflowX === "auto"
            ? element.getBoundingClientRect().right <= innerWidth : scrolls(element.parentElement));
        return [...document.querySelectorAll("body *")].filter((element) =>
            element.getBoundingClientRect().right > innerWidth && !scrolls(element)).map((each) => each.outerHTML);
        """
    )
    assert outside == []
    # The text that must be read first does not need scrolling.
    for selector in (".alarm", ".flattered", "h1"):
        for element in browser.find_all(selector):
            assert element.rect["x"] >= 0
            assert element.rect["x"] + element.rect["width"] <= width_px
    assert browser.find(".alarm").rect["y"] < 740
    assert browser.find(".alarm").rect["y"] < browser.find(".tiles").rect["y"]
