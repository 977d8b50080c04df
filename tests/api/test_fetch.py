import asyncio
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from openklein.api.fetch import NOT_PUBLIC, Fetcher, read_url
from openklein.errors import ReferenceUnavailable
from openklein.settings import Settings
from tests.api.hosts import LOOPBACK_HOSTS, NAMES, PRIVATE_HOSTS, resolve
from tests.api.listener import CERTIFICATE, Listener, listening


def fetcher(**changes: Any) -> Fetcher:
    values = {"data_dir": Path("unused"), "allowed_url_hosts": ("images.test",), "url_timeout_s": 5.0, **changes}
    return Fetcher(Settings(**values), resolve)


def fetch(url: str, **changes: Any) -> bytes:
    return asyncio.run(fetcher(**changes).fetch(read_url(url)))


def refusal(url: str, **changes: Any) -> str:
    with pytest.raises(ReferenceUnavailable) as caught:
        fetch(url, **changes)
    return str(caught.value)


REFUSALS = {  # some spellings the URL parser does not even read
    NOT_PUBLIC,
    "this is not a valid URL",
    "the URL redirects to an address that is not allowed",
}


def test_the_connection_is_made_to_the_resolved_address_under_the_urls_name(listener: Listener) -> None:
    url = listener.serve("/a.png?size=1", b"picture")
    assert fetch(f"{url}#fragment") == b"picture"
    assert listener.hits == [(f"images.test:{listener.port}", "/a.png?size=1")]


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
def test_no_way_of_writing_loopback_reaches_it(host: str, listener: Listener) -> None:
    listener.serve("/", b"secret")
    with pytest.raises(ReferenceUnavailable) as caught:
        fetch(f"http://{host}:{listener.port}/")
    assert str(caught.value) in REFUSALS
    assert listener.hits == []


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(ReferenceUnavailable) as caught:  # a connection would fail the test: it may not leave loopback
        fetch(f"https://{host}/")
    assert str(caught.value) in REFUSALS


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, "10.0.0.1", "[fe80::1]"])
def test_redirects_are_judged_again(host: str, listener: Listener) -> None:
    listener.serve("/secret", b"secret")
    start = listener.serve("/", status=302, location=f"http://{host.replace('。', '.')}:{listener.port}/secret")
    assert refusal(start) in REFUSALS
    assert [path for _, path in listener.hits] == ["/"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_allowed_hosts_are_followed(status: int, listener: Listener) -> None:
    listener.serve("/b/c.png", b"picture")
    assert fetch(listener.serve("/b/a", status=status, location="c.png")) == b"picture"


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://images.test/", "data:image/png;base64,AA==", "http://["]
)
def test_redirects_to_other_schemes_are_refused(location: str, listener: Listener) -> None:
    assert "redirects to an address that is not allowed" in refusal(listener.serve("/", status=302, location=location))


def test_redirects_have_an_end(listener: Listener) -> None:
    url = listener.serve("/loop", status=302, location="/loop")
    assert refusal(url, url_max_redirects=3) == "the URL redirects more than 3 times"
    assert len(listener.hits) == 4


def test_a_name_is_resolved_once_for_each_connection(listener: Listener) -> None:
    calls: list[str] = []

    async def rebinding(host: str, _port: int) -> list[str]:
        calls.append(host)
        return ["10.9.8.7"] if len(calls) == 1 else ["127.0.0.1"]

    listener.serve("/", b"secret")
    judged = Fetcher(Settings(data_dir=Path("unused")), rebinding)
    with pytest.raises(ReferenceUnavailable, match="not public"):
        asyncio.run(judged.fetch(read_url(f"http://rebinding.test:{listener.port}/")))
    assert calls == ["rebinding.test"]
    assert listener.hits == []


def test_an_allowed_host_opens_no_other(listener: Listener) -> None:
    listener.serve("/", b"picture")
    for host in ("other.test", "images.test.other.test", "sub.images.test", "127.0.0.1"):
        assert refusal(f"http://{host}:{listener.port}/") == NOT_PUBLIC
    assert fetch(f"http://IMAGES.test:{listener.port}/") == b"picture"


def test_a_second_address_is_tried_where_the_first_does_not_answer(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMES, "images.test", ["127.0.0.9", "127.0.0.1"])
    assert fetch(listener.serve("/", b"picture")) == b"picture"


def test_proxies_in_the_environment_are_not_used(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(listener.serve("/", b"picture")) == b"picture"


def test_tls_is_verified_for_the_name_in_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(with_tls=True) as listener:
        url = listener.serve("/", b"picture").replace("http:", "https:")
        assert "no connection" in refusal(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert fetch(url) == b"picture"
        assert "no connection" in refusal(url.replace("images.test", "other.test"), allowed_url_hosts=("other.test",))


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_other_statuses_are_named(status: int, listener: Listener) -> None:
    assert f"status {status}, not 200" in refusal(listener.serve("/", status=status))


def test_a_redirect_without_a_target_is_a_status_like_any_other(listener: Listener) -> None:
    assert "status 302" in refusal(listener.serve("/", status=302))


def test_files_may_have_the_size_allowed_and_no_byte_more(listener: Listener) -> None:
    url = listener.serve("/", bytes(1000))
    assert fetch(url, max_file_bytes=1000) == bytes(1000)
    assert "larger than the 999 bytes" in refusal(url, max_file_bytes=999)


def test_an_endless_file_is_given_up_at_the_limit(listener: Listener) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(bytes(10_000))

    assert "larger than" in refusal(listener.answer("/", endless), max_file_bytes=50_000)


def test_a_compressed_answer_is_refused(listener: Listener) -> None:
    assert "compressed" in refusal(listener.serve("/", b"tiny", content_encoding="gzip"))


def test_a_slow_answer_is_given_up_in_time(listener: Listener) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b".")
            time.sleep(0.05)

    started = time.monotonic()
    assert "longer than the 0.3 s allowed" in refusal(listener.answer("/", drip), url_timeout_s=0.3)
    assert time.monotonic() - started < 15


def test_slow_name_services_count_too() -> None:
    async def slow(_host: str, _port: int) -> list[str]:
        await asyncio.sleep(30)
        return []

    with pytest.raises(ReferenceUnavailable, match=r"longer than the 0\.2 s"):
        asyncio.run(
            Fetcher(Settings(data_dir=Path("unused"), url_timeout_s=0.2), slow).fetch(read_url("http://a.test"))
        )


def test_a_closed_port_and_an_answer_that_is_not_http(listener: Listener) -> None:
    assert "no connection" in refusal("http://images.test:1/")

    def mail(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"220 mail ready\r\n\r\n")

    url = listener.answer("/", mail)
    assert "did not answer as HTTP asks" in refusal(url)


def test_an_answer_cut_short_is_refused(listener: Listener) -> None:
    url = listener.serve("/", b"half", content_length="100")
    assert "did not answer as HTTP asks" in refusal(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "'file' is not allowed"),
        ("ftp://images.test/a.png", "'ftp' is not allowed"),
        ("gopher://127.0.0.1:70/", "'gopher' is not allowed"),
        ("javascript:alert(1)", "'javascript' is not allowed"),
        ("/etc/passwd", "'' is not allowed"),
        ("images.test/a.png", "'' is not allowed"),
        ("", "'' is not allowed"),
        ("http://", "no valid host"),
        ("http:///a.png", "no valid host"),
        ("http://images test/", "no valid host"),
        ("http://%31%32%37.0.0.1/", "no valid host"),
        ("http://[fe80::1%25lo]/", "no valid host"),
        ("http://user@images.test/", "user name or password"),
        ("http://images.test@127.0.0.1/", "user name or password"),
        ("http://8.8.8.8\\@127.0.0.1/", "user name or password"),
        ("http://images.test:0/", "port is 0"),
        ("http://images.test:65536/", "port is 65536"),
        ("http://images.test:x/", "not a valid URL"),
        ("http://[::1", "not a valid URL"),
        ("http://①②⑦.⓪.⓪.①/", "not a valid URL"),
        ("http://images.test/\r\nX: y", "not a valid URL"),
        ("http://images.test/\ud800", "not a valid URL"),
    ],
)
def test_urls_that_are_refused_as_they_are_written(url: str, reason: str) -> None:
    with pytest.raises(ReferenceUnavailable, match=r".") as caught:
        read_url(url)
    assert reason in str(caught.value)
