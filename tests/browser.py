"""A real browser without a window, for the pages that people look at."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from scripts import apt

BROWSER, DRIVER = "chromium", "chromedriver"
PACKAGES = ("chromium", "chromium-driver")
"""Debian's. (Ubuntu has them as snaps only: there they must be installed already.)"""

SHOWN_WITHIN = 60.0
"""Seconds for a page to show what is waited for."""

LOADED_WITHIN = 10.0
"""Seconds until a page is loaded again, as a person would, and then twice as many each time. TensorBoard's
(2.21) asks for its list of curves once: where that one answer fails, it never shows any."""


class Page:
    """A browser's one page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, address: str, *words: str) -> None:
        """Open it, and wait until it shows all the words. Load it again now and then."""
        self._driver.get(address)
        begun = time.monotonic()
        again = LOADED_WITHIN
        while missing := [word for word in words if word not in self._text()]:
            waited = time.monotonic() - begun
            assert waited < SHOWN_WITHIN, f"{address} does not show {missing} but: {self._text()[:2000]}"
            if waited > again:
                self._driver.refresh()
                again = 2 * again + LOADED_WITHIN
            time.sleep(0.5)

    def _text(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "body").text

    def picture(self, file: Path) -> None:
        """Take a picture of it, which must not be blank."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._driver.save_screenshot(str(file))
        with Image.open(file) as image:
            colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colours) > 50, f"{file} shows nothing"


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """Provide a browser, and install it where we may."""
    if shutil.which(BROWSER) is None or shutil.which(DRIVER) is None:
        assert apt.is_possible(), f"expected {BROWSER} and {DRIVER}, found none: install {' '.join(PACKAGES)}"
        apt.install(*PACKAGES)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which(BROWSER))
    # As root there is no sandbox, and containers have little shared memory.
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1100"):
        options.add_argument(word)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER)))
    try:
        yield Page(driver)
    finally:
        driver.quit()
