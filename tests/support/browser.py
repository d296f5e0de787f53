"""A browser for tests: Chromium without a window, which reaches this machine only."""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",  # WebGL2 without a GPU
    "--enable-unsafe-swiftshader",
    "--force-device-scale-factor=1",
    "--window-size=1800,1100",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
LONGEST_S = 60.0


class Browser:
    """Chromium; every look is kept as a picture in a folder."""

    def __init__(self, pictures: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for option in OPTIONS:
            options.add_argument(option)
        service = webdriver.ChromeService(shutil.which("chromedriver"), env=dict(os.environ))
        self.driver = webdriver.Chrome(options=options, service=service)
        self._pictures = pictures

    def open(self, address: str | Path) -> None:
        """A page, from disk or from a server."""
        self.driver.switch_to.default_content()
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)

    def until(self, seen: Callable[[], Any]) -> Any:
        """Wait until something is so."""
        return WebDriverWait(self.driver, LONGEST_S, ignored_exceptions=[Exception]).until(
            lambda _: seen()
        )

    def find(self, css: str) -> WebElement:
        """The first element, as soon as it is there."""
        return self.until(lambda: self.driver.find_element(By.CSS_SELECTOR, css))

    def find_all(self, css: str) -> list[WebElement]:
        """All elements that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def shows(self, *texts: str) -> None:
        """Wait until the page shows some texts."""

        def missing() -> list[str]:
            body = self.driver.find_element(By.TAG_NAME, "body").text
            return [text for text in texts if text not in body]

        try:
            self.until(lambda: not missing())
        except Exception as error:
            self.look("missing")
            raise AssertionError(f"the page does not show {missing()}") from error

    def look(self, name: str, css: str | None = None) -> npt.NDArray[np.uint8]:
        """The pixels (rows, columns, 3) of an element or the page, kept as a picture."""
        png = self.find(css).screenshot_as_png if css else self.driver.get_screenshot_as_png()
        (self._pictures / f"{name}.png").write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def settle(self) -> None:
        """Wait until two looks, a second apart, are the same: charts are drawn bit by bit."""
        before = b""

        def same() -> bool:
            nonlocal before
            time.sleep(1)
            last, before = before, self.driver.get_screenshot_as_png()
            return last == before

        self.until(same)

    def complaints(self) -> list[str]:
        """What the console said since the last time, of errors."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def close(self) -> None:
        """End it."""
        self.driver.quit()


def coloured(pixels: npt.NDArray[np.uint8]) -> int:
    """How many pixels are neither grey nor the ground's."""
    return int((np.ptp(pixels.astype(int), axis=-1) > 40).sum())


def pictures(browser: Browser) -> list[str]:
    """The sources of the pictures that are really there."""
    script = "return [...document.images].filter(i => i.naturalWidth > 200).map(i => i.src)"
    found: list[str] = browser.driver.execute_script(script)
    return found
