import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.browser import Browser, browsing, is_installed
from tests.end_to_end.servers import Server
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not is_installed():
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    with browsing(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def ask(browser: Browser, prompt: str, outcome: str) -> None:
    """Send the form, and wait until the page says `outcome`."""
    browser.clear("#prompt")
    browser.type("#prompt", prompt)
    browser.click("#send")
    wait_until(lambda: outcome in browser.text("#result"), timeout_s=60)


def shown(browser: Browser) -> Image.Image:
    """Take the pixels of the picture on the page, once it is decoded."""
    uri = browser.run(
        """return (async () => {
            const [picture, canvas] = [document.querySelector("#picture"), document.createElement("canvas")];
            await picture.decode();
            [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
            canvas.getContext("2d").drawImage(picture, 0, 0);
            return canvas.toDataURL("image/png");
        })()"""
    )
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_a_picture_is_made_then_edited_and_told_as_curl(browser: Browser, server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (256, 256), "white").save(tmp_path / "it's white.png")
    browser.open(server.url)
    wait_until(lambda: "klein-mini stands in" in browser.text("#model-note"))
    browser.type("#key", server.key)
    browser.type("#aspect-ratio", "square")
    ask(browser, "a red apple", "text-to-image")
    assert shown(browser).size == (1024, 1024)
    assert re.search(r"Model\s+klein-mini\s+Seed\s+\d+\s+Workflow", browser.text("#facts"))

    browser.type("#images", str(tmp_path / "it's white.png"))
    browser.type("#seed", "7")
    ask(browser, "make it's background blue", "image-to-image")
    assert browser.run("return document.querySelector('#download').download") == "openklein-7.png"
    curl = browser.text("#curl")
    assert server.key not in curl
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = curl.replace("YOUR_API_KEY", server.key)
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / "openklein-7.png") as same:
        assert same.tobytes() == shown(browser).tobytes()

    entries = browser.run("return performance.getEntries().map((entry) => entry.name).filter((name) => /:/.test(name))")
    assert len(entries) > 4
    assert {entry for entry in entries if not entry.startswith((server.url, f"blob:{server.url}", "data:"))} == set()
    browser.resize(320, 640)
    assert browser.run("return document.documentElement.scrollWidth") == 320


def test_a_template_fills_the_form(browser: Browser, server: Server) -> None:
    browser.open(server.url)
    browser.clear("#key")
    browser.type("#key", server.key)
    wait_until(lambda: browser.run("return document.querySelectorAll('#templates img').length") > 0)
    browser.click("#templates button[title='change the background to teal']")
    wait_until(lambda: browser.run("return document.querySelectorAll('#thumbnails img').length") == 1)
    assert browser.run("return document.querySelector('#prompt').value") == "change the background to teal"
    browser.click("#send")
    wait_until(lambda: "image-to-image" in browser.text("#result"), timeout_s=60)
    red, green, blue = (int(channel.mean()) for channel in np.moveaxis(np.asarray(shown(browser))[:16, :16], -1, 0))
    assert red < 90 < min(green, blue), "teal"


def test_a_wrong_key_is_told_where_it_was_typed(browser: Browser, server: Server) -> None:
    browser.open(server.url)
    browser.clear("#key")
    browser.type("#key", "klein_wrong")
    ask(browser, "a red apple", "API key")
    assert "API key" in browser.text("[role=alert]")
    assert browser.run("return document.activeElement.id") == "key"
    assert not browser.run("return document.querySelector('#send').disabled")
