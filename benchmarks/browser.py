"""A headless Chromium that is driven through Selenium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamprvr_ray.errors import UserError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--autoplay-policy=no-user-gesture-required",
    "--mute-audio", "--force-device-scale-factor=1",
)  # fmt: skip


class Browser:
    """A window of the browser."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, address: str) -> None:
        """Load an address."""
        self.chrome.get(address)

    def script(self, text: str, *arguments: object) -> Any:
        """Run a script in the page, and return its value."""
        return self.chrome.execute_script(text, *arguments)

    def wait(self, condition: str, seconds: float = 10) -> Any:
        """Wait until an expression of the page is true, and return it. Raises TimeoutError with what the page shows."""
        end = time.monotonic() + seconds
        while not (value := self.script(f"return {condition}")):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: {self.script('return document.body.innerText')}; {self.errors()}")
            time.sleep(0.03)
        return value

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()

    def search(self, sentence: str) -> None:
        """Type a sentence into the page of `serve` with the keyboard, and wait for its answer."""
        from selenium.webdriver import Keys

        if self.script("return document.activeElement.id === 'sentence'"):
            self.press(Keys.ESCAPE)
        self.press("/")
        self.wait("document.activeElement.id === 'sentence'")
        self.press(sentence + Keys.ENTER)
        self.wait(f"answer && answer.sentence === {sentence.strip()!r} && !request", 30)

    def screenshot(self, path: Path) -> None:
        """Write a picture of what the window shows."""
        self.chrome.get_screenshot_as_file(str(path))

    def errors(self) -> list[str]:
        """Return what the console shows and has not been returned before."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]


@contextmanager
def browser(downloads: Path, width: int = 1440, height: int = 1000, dark: bool = False) -> Iterator[Browser]:
    """Start Chromium. Raises `UserError` if it, its driver or Selenium is not installed."""
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None or find_spec("selenium") is None:
        raise UserError("needs Chromium and Selenium: apt-get install chromium chromium-driver; pip install selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (*SWITCHES, f"--window-size={width},{height}"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        # Windows cannot be narrower than 500 pixels.
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield Browser(chrome)
    finally:
        chrome.quit()
