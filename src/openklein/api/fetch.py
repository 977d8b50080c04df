"""Fetch image URLs for callers whose word is not trusted.

Every address a name resolves to is judged, the connection is made to the judged address, and each redirect is judged
again. No proxy, cookie, redirect or log of the HTTP library takes part: requests go straight to its transport.
"""

import asyncio
from ipaddress import ip_address

import httpx

from openklein.api.addresses import Resolve, is_public, read_literal
from openklein.errors import ReferenceUnavailable
from openklein.settings import Settings

CONNECT_TIMEOUT_S = 3.0
REDIRECTS = (301, 302, 303, 307, 308)

# One sentence for names that are unknown and for those that lead inside, or the difference would map a private network.
NOT_PUBLIC = "the address is not public, or its host is unknown"


class Fetcher:
    """Download what public URLs hold, within the limits of time, size and redirects in the settings."""

    def __init__(self, settings: Settings, resolve: Resolve) -> None:
        self._settings = settings
        self._resolve = resolve
        self._tls = httpx.create_ssl_context()

    async def fetch(self, url: httpx.URL) -> bytes:
        """Return the body behind a URL that `read_url` accepted; raises ReferenceUnavailable."""
        limit_s = self._settings.url_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(url)
        except TimeoutError as error:
            raise ReferenceUnavailable(f"fetching the URL took longer than the {limit_s:g} s allowed") from error
        except httpx.HTTPError as error:
            raise ReferenceUnavailable("the server behind the URL did not answer as HTTP asks") from error

    async def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(self._settings.url_max_redirects + 1):
            answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise ReferenceUnavailable(f"the URL redirects more than {self._settings.url_max_redirects} times")

    async def _get(self, url: httpx.URL) -> bytes | httpx.URL:
        for address in await self._judged_addresses(url):
            try:
                return await self._request(url, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        raise ReferenceUnavailable("no connection to the server behind the URL could be made")

    async def _judged_addresses(self, url: httpx.URL) -> list[str]:
        host = url.raw_host.decode("ascii")
        literal = read_literal(host)
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            found = [str(literal)] if literal else list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise ReferenceUnavailable(NOT_PUBLIC) from error
        is_allowed = host.lower() in self._settings.allowed_url_hosts
        if not found or not (is_allowed or all(is_public(ip_address(address)) for address in found)):
            raise ReferenceUnavailable(NOT_PUBLIC)
        return found

    async def _request(self, url: httpx.URL, address: str) -> bytes | httpx.URL:
        request = httpx.Request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={
                "host": url.netloc.decode("ascii"),
                "accept": "image/png, image/jpeg, image/webp",
                "accept-encoding": "identity",  # a compressed answer could unpack to any size
                "user-agent": "openklein",
            },
            extensions={
                "sni_hostname": url.raw_host.decode("ascii"),
                "timeout": {"connect": CONNECT_TIMEOUT_S},
            },
        )
        # A new connection each time: one that is kept could serve another name at the same address unverified.
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                return await self._read(url, response)
            finally:
                await response.aclose()

    async def _read(self, url: httpx.URL, response: httpx.Response) -> bytes | httpx.URL:
        if response.status_code in REDIRECTS and "location" in response.headers:
            return _redirect(url, response.headers["location"])
        if response.status_code != 200:
            raise ReferenceUnavailable(
                f"the server behind the URL answered with status {response.status_code}, not 200"
            )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ReferenceUnavailable("the server behind the URL sent a compressed answer that was not asked for")
        limit = self._settings.max_file_bytes
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                raise ReferenceUnavailable(f"the file behind the URL is larger than the {limit} bytes allowed")
        return bytes(body)


def read_url(text: str) -> httpx.URL:
    """Read an http or https URL without contacting anyone; raises ReferenceUnavailable for any other."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ReferenceUnavailable("this is not a valid URL") from error
    if url.scheme not in ("http", "https"):
        raise ReferenceUnavailable(f"the scheme {url.scheme[:20]!r} is not allowed; use http, https or data")
    if not url.host or "%" in url.host:
        raise ReferenceUnavailable("the URL names no valid host")
    if url.port is not None and not 1 <= url.port <= 65_535:
        raise ReferenceUnavailable(f"the URL's port is {url.port}; 1 to 65535 are allowed")
    if url.userinfo:
        raise ReferenceUnavailable("the URL may not carry a user name or password")
    return url


def _redirect(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return read_url(str(url.join(location)))
    except (httpx.InvalidURL, ReferenceUnavailable) as error:
        raise ReferenceUnavailable("the URL redirects to an address that is not allowed") from error
