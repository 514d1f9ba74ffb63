"""A real browser with the endpoint's page: Debian's Chromium, without a screen."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

DEADLINE_S = 60


class Browser:
    """A browser window with the page; what it downloads lies in `downloads`."""

    def __init__(self, downloads: Path) -> None:
        self.downloads = downloads
        options = webdriver.ChromeOptions()
        options.binary_location = _find("chromium")
        # As root, as in containers, Chromium runs without its sandbox only; what is shown here is the project's own.
        for argument in (
            "headless",
            "hide-scrollbars",
            "no-sandbox",
            "disable-dev-shm-usage",
            "disable-gpu",
            "window-size=1200,900",
        ):
            options.add_argument(f"--{argument}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_find("chromedriver")))

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str, within: WebElement | None = None) -> list[WebElement]:
        return (within or self.driver).find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str, within: WebElement | None = None) -> list[str]:
        return [each.get_property("textContent") for each in self.find_all(selector, within)]  # pyright: ignore

    def wait(self, condition: Callable[[], Any], message: str = "") -> Any:
        return WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.02).until(lambda _: condition(), message)

    def choose(self, *paths: Path) -> None:
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def wait_until_done(self, text: str) -> None:
        self.wait(lambda: self.find("#status").text.startswith(text), f"never: {text}")

    def card(self, path: Path) -> WebElement:
        (card,) = (each for each in self.find_all(".card") if self.texts("h2", each) == [path.name])
        return card

    def focused(self) -> str:
        element = self.driver.switch_to.active_element
        return element.get_attribute("id") or element.text

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """What the console has been told since the last time, violations of the page's policy included.

        Without what Chromium says of every answer that is an error, as the page deals with those.
        """
        told = [each["message"] for each in self.driver.get_log("browser")]
        return [
            each
            for each in told
            if not re.search(r"/(model|predict\S*) - Failed to load resource: .* status of 4", each)
        ]


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        message = f"needs {program} on the PATH (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            raise FileNotFoundError(message)
        pytest.skip(message)
    return path
