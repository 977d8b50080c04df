import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from openklein.api.addresses import is_public, read_literal, resolver
from tests.api.hosts import LOOPBACK_HOSTS, PRIVATE_HOSTS

PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "169.253.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
)
LITERALS = [host.strip("[]") for host in (*LOOPBACK_HOSTS, *PRIVATE_HOSTS) if read_literal(host.strip("[]"))]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_let_through(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("host", LITERALS)
def test_all_others_are_refused_in_every_spelling(host: str) -> None:
    address = read_literal(host)
    assert address is not None
    assert not is_public(address)


@pytest.mark.parametrize("spelling", ["8.8.8.8", "0x8.8.8.8", "134744072", "010.8.8.8", "0x08080808", "8.8.2056"])
def test_spellings_of_the_c_library_are_read_as_it_reads_them(spelling: str) -> None:
    assert read_literal(spelling) == ip_address("8.8.8.8")


@pytest.mark.parametrize("name", ["example.com", "8.8.8.8.example", "0x", "", "a.b"])
def test_names_are_not_literals(name: str) -> None:
    assert read_literal(name) is None


def test_the_systems_name_service_is_asked_off_the_event_loop() -> None:
    with ThreadPoolExecutor(1) as threads:
        found = asyncio.run(resolver(threads)("localhost", 80))
    assert found
    assert set(found) <= {"127.0.0.1", "::1"}


def test_an_unknown_name_is_an_os_error() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(socket.gaierror):
        asyncio.run(resolver(threads)("", 80))
