"""The page in a real browser, Chromium without a screen: what people see and do, before a real model."""

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import keras
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from serve_app.model.classifier import Answer, ModelInfo, Pixels
from tests.browser import Browser
from tests.endpoint import LocalClassifier, below, listening, local_api
from tlray import cli
from tlray.data import thumbnail
from tlray.inference.lookalikes import Lookalike

DEADLINE_S = 60
KEY = "0123456789abcdef"
CLASSES = ("dark", "<i>light</i> & more")
SIZE_PX = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LocalClassifier:
    """A bundle that tells dark images from light ones, and is unsure between them."""
    return LocalClassifier(export(tmp_path_factory.mktemp("bundle"), slope=10.0))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> LocalClassifier:
    """Another one, which is less sure."""
    return LocalClassifier(export(tmp_path_factory.mktemp("other"), slope=5.0))


def export(directory: Path, *, slope: float) -> str:
    """Makes a bundle whose logits are linear in an image's mean, and equal where that is half of white."""
    image = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(1, 3, kernel_initializer="ones")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    dense = keras.layers.Dense(2, activation="softmax")
    network = keras.Model(image, dense(x))
    dense.set_weights([np.array([[-slope, slope]]) / 27, np.array([slope, -slope]) / 2])
    network.save(directory / "own.keras")
    (directory / "classes.txt").write_text("\n".join(CLASSES))
    arguments = ["--model", directory / "own.keras", "--classes", directory / "classes.txt"]
    arguments += ["--preprocessing", "unit", "--refer-below", "0.8", "--out", directory / "bundle"]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["export", *map(str, arguments)])
    assert not exit_info.value.code
    return str(directory / "bundle")


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with listening(local_api(model)) as address:
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Images by what is special in them."""
    directory = tmp_path_factory.mktemp("images")
    ramp = np.linspace(0, 60, 48 * 40).reshape(40, 48)
    images = {
        "dark": ("dark slice.png", ramp),
        "light": ("light.jpg", 190 + ramp),
        "unsure": ("unsure.png", 98 + ramp),
        "no preview": ("scan.tiff", (190 + ramp) * 257),
        "markup": ("<img src=x onerror=alert(1)>.png", ramp),
        "formula": ('=HYPERLINK("x"), 1.png', 190 + ramp),
    }
    for name, pixels in images.values():
        Image.fromarray(pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8)).save(directory / name)
    (directory / "broken.png").write_bytes(b"\x89PNG and no more")
    (directory / "empty.png").write_bytes(b"")
    names = {what: name for what, (name, _) in images.items()} | {"broken": "broken.png", "empty": "empty.png"}
    return {what: directory / name for what, name in names.items()}


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(window, address) -> Iterator[Browser]:
    """The page as it is at first; whoever made it complain has failed."""
    window.driver.get(f"{address}/")
    yield window
    assert window.complaints() == []


def asked(address: str, path: Path, query: str = "") -> dict[str, Any]:
    """What the endpoint says of a file, asked for it directly."""
    file = {"file": (path.name, path.read_bytes())}
    answer = httpx.post(f"{address}/predict{query}", files=file, timeout=DEADLINE_S)
    return answer.raise_for_status().json()["predictions"][0]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_what_the_page_shows_is_what_the_endpoint_says(browser, address, files):
    wanted = ("dark", "light", "unsure")
    browser.choose(*(files[what] for what in wanted))
    browser.wait_until_done("3 of 3 images done, 1 to refer to a specialist, 0 failed")
    refer = {}
    for what in wanted:
        card, said = browser.card(files[what]), asked(address, files[what])
        assert browser.texts(".label", card) == [said["label"]]
        assert browser.texts(".bars .name", card) == list(CLASSES)
        assert browser.texts(".bars .value", card) == [percent(value) for value in said["probabilities"].values()]
        widths = [each.get_attribute("style") for each in browser.find_all(".fill", card)]
        assert widths == [f"width: {100 * value:.1f}%;".replace(".0%", "%") for value in said["probabilities"].values()]
        assert browser.texts(".bars .top .name", card) == [said["label"]]
        refer[what] = browser.texts(".badge", card)
        assert bool(refer[what]) == said["refer"]
    assert refer == {"dark": [], "light": [], "unsure": ["Refer to a specialist"]}
    labels = Counter(asked(address, files[what])["label"] for what in wanted)
    assert browser.texts("#counts li") == [f"{label}: {labels[label]}" for label in sorted(labels)]
    assert "no medical device" in browser.find("[role=note]").text


def test_the_model_is_named_before_it_answers(browser, address):
    browser.wait(lambda: browser.find("#model").text.startswith("Model "))
    told = f"Model chest-ct, version 1, bundle {model_sha256(address)}. Classes: {', '.join(CLASSES)}."
    assert browser.find("#model").text == told
    assert num_requests(browser) == 0


def test_results_of_another_bundle_say_so(window, model, other, files):
    first, second = (each._model.info.bundle_sha256 for each in (model, other))
    serving = Exchanged(model)
    with listening(local_api(serving)) as address:
        window.driver.get(f"{address}/")
        window.choose(files["dark"])
        window.wait_until_done("1 of 1 images done")
        window.wait(lambda: first in window.find("#model").text)
        assert [each.is_displayed() for each in window.find_all(".bundle")] == [False]
        serving.classifier = other
        window.choose(files["light"])
        window.wait_until_done("2 of 2 images done")
        window.wait(lambda: second in window.find("#model").text)
        notes = {what: window.find_all(".bundle", window.card(files[what]))[0] for what in ("dark", "light")}
        assert {what: note.is_displayed() for what, note in notes.items()} == {"dark": True, "light": False}
        assert notes["dark"].text == f"Predicted by another bundle: {first}"
        assert window.complaints() == []
        window.driver.get("about:blank")


class Exchanged:
    """A model in whose place another one can be put, at once."""

    def __init__(self, classifier: LocalClassifier) -> None:
        self.classifier = classifier

    def __getattr__(self, name: str) -> Any:
        return getattr(self.classifier, name)


class WithLookalikes(Exchanged):
    """A model that finds three training images like each image: a light one, and two that are dark."""

    async def predict(self, pixels: Pixels) -> Answer:
        answer = await self.classifier.predict(pixels)
        jpeg = thumbnail.to_jpeg(np.full((96, 96), 128, np.uint8))
        found = [
            Lookalike(class_index=index, similarity=similarity, jpeg=jpeg)
            for index, similarity in ((1, 0.987), (0, 0.5), (0, -0.25))
        ]
        return replace(answer, lookalikes=[found for _ in pixels.images] if pixels.with_lookalikes else None)


def test_training_images_that_are_like_an_image_are_shown_beside_it(window, model, files):
    with listening(local_api(WithLookalikes(model))) as address:
        window.driver.get(f"{address}/")
        window.find("#explain").click()
        window.choose(files["dark"])
        window.wait_until_done("1 of 1 images done")
        card = window.card(files["dark"])
        assert window.texts(".lookalikes .name", card) == [CLASSES[1], CLASSES[0], CLASSES[0]]
        assert window.texts(".lookalikes .muted", card) == ["similarity 0.99", "similarity 0.50", "similarity -0.25"]
        assert "not evidence" in card.text
        pictures = window.find_all(".lookalikes img", card)
        window.wait(lambda: all(each.get_property("naturalWidth") == 96 for each in pictures))
        assert window.complaints() == []
        window.driver.get("about:blank")


class Foreign(Exchanged):
    """A model to which light images are foreign, though it is sure of them."""

    async def describe(self) -> ModelInfo:
        info = await self.classifier.describe()
        return replace(info, spec=replace(info.spec, thresholds={**info.spec.thresholds, "max_ood_score": 1.0}))

    async def predict(self, pixels: Pixels) -> Answer:
        answer = await self.classifier.predict(pixels)
        assert answer.probabilities is not None
        return replace(answer, ood_scores=np.where(answer.probabilities[:, 1] > 0.9, 2, 0).astype(np.float32))


def test_a_foreign_image_is_called_so_before_anything_else_is_said_of_it(window, model, files):
    with listening(local_api(Foreign(model))) as address:
        window.driver.get(f"{address}/")
        window.find("#explain").click()
        window.choose(files["light"], files["unsure"])
        window.wait_until_done("2 of 2 images done, 2 to refer to a specialist, 0 failed")
        foreign, unsure = window.card(files["light"]), window.card(files["unsure"])
        title, *said = (line for line in foreign.text.splitlines() if line)
        assert (title, said[:3]) == (
            files["light"].name,
            ["This does not look like the images that the model was trained on.", "Refer to a specialist", CLASSES[1]],
        )
        assert said[3].startswith("Confidence ")
        assert said[3].endswith(" %. It means nothing for such an image.")
        assert "means nothing" not in unsure.text
        grey = window.find_all("h2 + .frame + .notice + .badge + .label + .muted", foreign)[0]
        for selector in (".label", ".bars .top"):
            (shown,) = window.find_all(selector, foreign)
            assert shown.value_of_css_property("color") == grey.value_of_css_property("color")
        for value, first in (("least", "light"), ("most", "unsure")):  # though the confidence is the larger one
            window.find(f"#order option[value={value}]").click()
            assert window.texts(".card h2")[0] == files[first].name
        assert window.complaints() == []
        window.driver.get("about:blank")


def test_results_are_put_in_order_of_certainty(browser, address, files):
    chosen = ("unsure", "broken", "light", "dark")
    browser.choose(*(files[what] for what in chosen))
    browser.wait_until_done("4 of 4 images done")
    certainty = {what: asked(address, files[what])["confidence"] for what in chosen if what != "broken"}
    assert len(set(certainty.values())) == 3
    least = [*sorted(certainty, key=lambda what: certainty[what]), "broken"]
    most = [*sorted(certainty, key=lambda what: -certainty[what]), "broken"]

    def shown() -> list[str]:
        return browser.texts(".card h2")

    def names(order: Iterable[str]) -> list[str]:
        return [files[what].name for what in order]

    assert shown() == names(chosen)
    for value, order in (("least", least), ("most", most), ("chosen", chosen), ("least", least)):
        browser.find(f"#order option[value={value}]").click()
        assert shown() == names(order)
    browser.choose(files["no preview"])  # what comes later takes its place too
    browser.wait_until_done("5 of 5 images done")
    certainty["no preview"] = asked(address, files["no preview"])["confidence"]
    assert shown() == names([*sorted(certainty, key=lambda what: certainty[what]), "broken"])


def model_sha256(address: str) -> str:
    return httpx.get(f"{address}/v2/health/ready", timeout=DEADLINE_S).json()["bundle_sha256"]


def test_a_file_that_cannot_be_used_is_told_beside_the_others(browser, address, files):
    browser.choose(files["broken"], files["dark"])
    browser.wait_until_done("2 of 2 images done, 0 to refer to a specialist, 1 failed")
    file = {"file": files["broken"].read_bytes()}
    answer = httpx.post(f"{address}/predict", files=file, timeout=DEADLINE_S)
    (told,) = browser.texts(".error", browser.card(files["broken"]))
    assert told == answer.json()["error"] + answer.json()["error_code"]
    browser.wait(lambda: "No preview" in browser.find(".failed .frame").text)
    assert browser.texts(".label") == ["dark"]
    before = num_requests(browser)
    browser.find("#again").click()
    browser.wait(lambda: num_requests(browser) > before)
    browser.wait_until_done("2 of 2 images done, 0 to refer to a specialist, 1 failed")


def num_requests(browser: Browser) -> int:
    """How many predictions the page has been answered."""
    return sum("/predict" in name for name in fetched(browser))


def fetched(browser: Browser) -> list[str]:
    """The addresses that the page has been answered from."""
    return browser.driver.execute_script("return performance.getEntriesByType('resource').map(({ name }) => name)")


def test_the_overlay_is_shown_and_hidden_and_left_out(browser, address, files):
    browser.choose(files["light"])
    browser.wait_until_done("1 of 1 images done")
    overlay, button = browser.find(".overlay"), browser.find(".card button")
    browser.wait(lambda: overlay.get_property("complete") and overlay.get_property("naturalWidth"))
    shown = browser.driver.execute_script(
        """const [image] = arguments, canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        return canvas.toDataURL().split(",")[1];""",
        overlay,
    )
    path = files["light"]
    said = base64.b64decode(asked(address, path, "?explain=true")["explanation"])
    np.testing.assert_array_equal(pixels_of(base64.b64decode(shown)), pixels_of(said))
    assert np.ptp(pixels_of(said), axis=2).max() > 20  # heat over a grey image
    assert told(overlay, button) == (True, "true", "Grad-CAM overlay: on")
    for is_shown, state in ((False, "off"), (True, "on")):
        button.click()
        assert told(overlay, button) == (is_shown, str(is_shown).lower(), f"Grad-CAM overlay: {state}")
    assert opacity(browser) == 0.8
    browser.find("#strength").send_keys(Keys.HOME)
    assert opacity(browser) == 0
    browser.find("#strength").send_keys(Keys.END)
    assert opacity(browser) == 1
    browser.find("#clear").click()
    browser.find("#explain").click()
    browser.choose(path)
    browser.wait_until_done("1 of 1 images done")
    assert (browser.find_all(".overlay"), browser.find_all(".card button")) == ([], [])


def told(overlay: WebElement, button: WebElement) -> tuple[bool, str | None, str]:
    return overlay.is_displayed(), button.get_attribute("aria-pressed"), button.text


def opacity(browser: Browser) -> float:
    return float(browser.driver.execute_script("return getComputedStyle(document.querySelector('.overlay')).opacity"))


def test_the_page_and_its_documentation_work_below_a_prefix(window, model, files):
    with listening(below("/ct", local_api(model, {"TLRAY_API_KEYS": KEY}))) as address:
        window.driver.get(f"{address}/ct/")
        window.wait(lambda: window.focused() == "key")
        window.press(KEY, Keys.ENTER)
        window.choose(files["dark"])
        window.wait_until_done("1 of 1 images done, 0 to refer to a specialist, 0 failed")
        assert window.complaints() == []
        try_live(window, f"{address}/ct")
        assert window.complaints() == []
        window.driver.get("about:blank")


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_the_results_are_saved_as_csv(browser, address, files):
    chosen = [files[what] for what in ("formula", "no preview", "empty")]
    browser.choose(*chosen)
    browser.wait_until_done("3 of 3 images done, 0 to refer to a specialist, 1 failed")
    browser.find("#download").click()
    path = browser.downloads / "predictions.csv"
    browser.wait(path.exists)
    text = path.read_bytes().decode("utf-8-sig")
    path.unlink()
    assert text.count("\r\n") == 4
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert list(rows) == ["'" + files["formula"].name, files["no preview"].name, files["empty"].name]
    for row, path in zip(list(rows.values())[:2], chosen, strict=False):
        said = asked(address, path)
        assert (row["label"], row["refer"]) == (said["label"], str(said["refer"]).lower())
        assert float(row["confidence"]) == said["confidence"]
        assert {name: float(row[f"p_{name}"]) for name in CLASSES} == said["probabilities"]
        assert (row["error_code"], row["error"], row["bundle_sha256"]) == ("", "", model_sha256(address))
    empty = rows[files["empty"].name]
    assert (empty["label"], empty["error_code"], empty["error"]) == ("", "empty", "file: The file has zero bytes.")


def test_names_are_text_whatever_they_are(browser, files):
    browser.choose(files["markup"], files["light"])
    browser.wait_until_done("2 of 2 images done")
    assert browser.texts("h2", browser.find(".cards")) == [files["markup"].name, files["light"].name]
    assert browser.texts(".label") == ["dark", CLASSES[1]]
    made = browser.driver.execute_script(
        "return document.querySelectorAll('main i, main img:not([src^=\"blob:\"])').length"
    )
    assert made == 0


def test_folders_are_chosen_and_dropped(browser, files, tmp_path):
    for name in ("b 10.png", "b 9.png", "deeper/a.png", "deeper/.hidden.png", "notes.txt"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files["dark"].read_bytes())
    expected = ["folder/b 9.png", "folder/b 10.png", "folder/deeper/a.png"]
    browser.find("#folder").send_keys(str(tmp_path / "folder"))
    browser.wait_until_done("3 of 3 images done, 0 to refer to a specialist, 0 failed, 2 other files left out")
    assert browser.texts(".card h2") == expected
    browser.find("#clear").click()
    place = browser.find("#drop").rect
    data = {"items": [], "files": [str(tmp_path / "folder"), str(files["light"])], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": place["x"] + 20, "y": place["y"] + 20, "data": data}
        browser.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
    browser.wait_until_done("4 of 4 images done, 0 to refer to a specialist, 0 failed, 2 other files left out")
    assert sorted(browser.texts(".card h2")) == sorted([*expected, files["light"].name])


def test_the_keyboard_is_enough(browser, files):
    browser.driver.execute_script(
        """for (const each of document.querySelectorAll("input[type=file]"))
        each.addEventListener("click", (event) => { event.preventDefault(); window.opened = each.id; });"""
    )
    browser.find("body").send_keys(Keys.TAB)
    for button, field in (("pick-files", "files"), ("pick-folder", "folder")):
        assert browser.focused() == button
        browser.press(Keys.ENTER)
        assert browser.driver.execute_script("return window.opened") == field
        browser.press(Keys.TAB)
    assert browser.focused() == "explain"
    browser.press(Keys.SPACE)
    assert not browser.find("#explain").is_selected()
    browser.press(Keys.SPACE)
    browser.choose(files["dark"])
    browser.wait_until_done("1 of 1 images done")
    order = []
    browser.find("#explain").send_keys(Keys.TAB)
    for _ in range(5):
        order.append(browser.focused())
        browser.press(Keys.TAB)
    assert order == ["download", "clear", "order", "strength", "Grad-CAM overlay: on"]
    browser.find(".card button").send_keys(Keys.SPACE)
    assert not browser.find(".overlay").is_displayed()
    browser.find("#clear").send_keys(Keys.ENTER)
    assert (browser.find_all(".card"), browser.focused()) == ([], "pick-files")
    style = browser.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"  # where one is can be seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, files, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.choose(files["unsure"], files["empty"])
    browser.wait_until_done("2 of 2 images done")
    background = luminance(browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (background > 0.5) == (scheme == "light")
    for selector in (
        "h1",
        "[role=note]",
        ".muted",
        "#pick-files",
        "#pick-folder",
        ".label",
        ".badge",
        ".error",
        ".value",
    ):
        colours = browser.driver.execute_script(
            """let element = document.querySelector(arguments[0]), colours = [getComputedStyle(element).color];
            while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)") element = element.parentElement;
            return [...colours, getComputedStyle(element).backgroundColor];""",
            selector,
        )
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector  # https://www.w3.org/TR/WCAG22/#contrast-minimum


def luminance(colour: str) -> float:
    """Returns the relative luminance of "rgb(r, g, b)", see https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    values = np.array([float(each) for each in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_key_is_asked_for_kept_for_the_page_and_stored_nowhere(window, model, files):
    with listening(local_api(model, {"TLRAY_API_KEYS": KEY})) as address:
        window.driver.get(f"{address}/")
        window.choose(files["dark"], files["light"])
        window.wait(lambda: window.focused() == "key")
        assert window.find("#key-message").text == "The server requires a key."
        window.press(KEY[::-1], Keys.ENTER)
        window.wait(lambda: window.find("#key-message").text.startswith("The server refuses this key"))
        window.press(KEY, Keys.ENTER)
        window.wait_until_done("2 of 2 images done, 0 to refer to a specialist, 0 failed")
        assert not window.find("#key-form").is_displayed()
        stored = window.driver.execute_script("return [localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""]
        assert KEY not in window.driver.page_source
        assert window.complaints() == []
        window.driver.get("about:blank")  # the server ends when nobody holds a connection


def test_the_documentation_is_shown_without_another_server(browser, address):
    try_live(browser, address)
    assert [each for each in fetched(browser) if not each.startswith((address, "data:"))] == []


def try_live(browser: Browser, address: str) -> None:
    """Opens the documentation, and asks from there whether the process answers."""
    browser.driver.get(f"{address}/docs")
    paths = httpx.get(f"{address}/openapi.json", timeout=DEADLINE_S).json()["paths"]
    num_operations = sum(len(methods) for methods in paths.values())
    browser.wait(lambda: len(browser.find_all(".opblock")) == num_operations)
    block = browser.find("#operations-health-live_v2_health_live_get")
    block.find_element(By.TAG_NAME, "button").click()
    browser.wait(lambda: browser.find_all(".try-out__btn", block))[0].click()
    browser.wait(lambda: browser.find_all(".execute", block))[0].click()
    browser.wait(lambda: browser.find_all(".live-responses-table .microlight", block))
    assert browser.texts(".live-responses-table .response-col_status", block)[-1].startswith("200")
    assert f"{address}/v2/health/live" in fetched(browser)
