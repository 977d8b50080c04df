import re
from io import BytesIO

import httpx
import pytest
from PIL import Image

from openklein.contract import RESOLUTIONS
from tests.api.sites import Site

FILES = {
    "/": "text/html",
    "/app.js": "text/javascript",
    "/style.css": "text/css",
    "/templates/templates.json": "application/json",
}


def get(site: Site, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{site.port}{path}", trust_env=False)


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_the_page_needs_no_key_and_carries_its_armour(path: str, kind: str, site: Site) -> None:
    response = get(site, path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert site.client.head(path).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(site: Site) -> None:
    for path in FILES:
        text = get(site, path).text
        assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r'placeholder="[^"]*"', "", text)) == []
        assert "<style" not in text
        assert " style=" not in text
        assert not re.search(r"<script(?![^>]*src)|\son[a-z]+=", text)


def test_what_the_page_names_is_served(site: Site) -> None:
    for name in re.findall(r'(?:href|src)="([a-z.]+)"', get(site, "/").text):
        assert get(site, f"/{name}").status_code == 200


def test_the_page_offers_what_the_api_takes(site: Site) -> None:
    text = get(site, "/").text
    options = re.findall(r'<option value="(\w+)">(\w+), (\d+) × (\d+)</option>', text)
    assert {name: (int(width), int(height)) for name, _, width, height in options} == RESOLUTIONS
    assert options[0][0] == "landscape"
    assert "not affiliated with Black Forest Labs" in text


def test_the_script_finds_every_element_it_names(site: Site) -> None:
    named = re.search(r'= \[("form"[^\]]*)\]', get(site, "/app.js").text)
    assert named is not None
    ids = set(re.findall(r'"([a-z-]+)"', named[1]))
    assert ids <= set(re.findall(r' id="([a-z-]+)"', get(site, "/").text))


def test_every_template_is_a_request_that_the_api_takes_and_has_its_picture(site: Site) -> None:
    made: list[str] = []
    for template in get(site, "/templates/templates.json").json():
        assert set(template["sources"]) <= set(made), "a template edits what an earlier one made"
        assert len(template["sources"]) <= 4
        assert template["prompt"]
        answer = get(site, f"/templates/{template['name']}.webp")
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(BytesIO(answer.content)) as picture:
            assert picture.size == RESOLUTIONS[template["aspect_ratio"]]
        made.append(template["name"])
    assert len(made) >= 6


@pytest.mark.parametrize("name", ["templates/", "templates/%2e%2e/app.js", "templates/lion.png", "../settings.py"])
def test_nothing_but_the_page_and_its_files_is_served(name: str, site: Site) -> None:
    assert get(site, f"/{name}").status_code == 404
