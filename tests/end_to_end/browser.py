"""Drive a headless Chromium through chromedriver, which speaks WebDriver over HTTP."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name WebDriver gives to a reference to an element
QUIET = [
    "--headless",
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def is_installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@dataclass(frozen=True, slots=True)
class Browser:
    """One window; elements are named by CSS selectors."""

    session: httpx.Client

    def _post(self, path: str, **fields: Any) -> Any:
        response = self.session.post(path, json=fields)
        assert response.is_success, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def run(self, script: str) -> Any:
        """Run a function's body in the page and return what it returns, promises awaited."""
        return self._post("execute/sync", script=script, args=[])

    def type(self, selector: str, text: str) -> None:
        self._post(f"element/{self._find(selector)}/value", text=text)

    def clear(self, selector: str) -> None:
        self._post(f"element/{self._find(selector)}/clear")

    def click(self, selector: str) -> None:
        self._post(f"element/{self._find(selector)}/click")

    def text(self, selector: str) -> str:
        """Read what a person can see of an element."""
        response = self.session.get(f"element/{self._find(selector)}/text")
        return str(response.json()["value"])

    def resize(self, width: int, height: int) -> None:
        """Show the page as a phone of this size in CSS pixels does."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def _find(self, selector: str) -> str:
        return str(self._post("element", using="css selector", value=selector)[ELEMENT])


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a new, empty profile in `folder`."""
    log = folder / "chromedriver.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "started successfully on port" in log.read_text(), timeout_s=60)
        (port,) = re.findall(r"started successfully on port (\d+)", log.read_text())
        arguments = [*QUIET, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        root = f"http://127.0.0.1:{port}/session"
        started = httpx.post(root, json={"capabilities": wanted}, timeout=120, trust_env=False)
        assert started.is_success, started.text
        root = f"{root}/{started.json()['value']['sessionId']}"
        with httpx.Client(base_url=root, timeout=120, trust_env=False) as session:
            try:
                yield Browser(session)
            finally:
                assert session.delete(root).is_success  # which ends Chromium; chromedriver alone would leave it
    finally:
        driver.terminate()
        driver.wait()
