"""Judge network addresses: only public ones may be reached on a caller's behalf."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]

# A list of our own, because ipaddress.is_global lets some of these through and differs between Python versions.
REFUSED = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers (CGNAT)
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # a cloud's host agent, behind a public number
            "169.254.0.0/16",  # link-local, metadata services
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112 sinks
            "192.52.193.0/24",  # multicast tunnels
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112 sinks
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "2001::/23",  # protocol assignments, Teredo
            "2001:db8::/32",  # documentation
            "2620:4f:8000::/48",  # AS112 sinks
            "3fff::/20",  # documentation
        ),
    )
)
UNICAST6 = ip_network("2000::/3")  # all that is allotted to public hosts; loopback, ULA, multicast lie outside
NAT64 = ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to the public internet; IPv4 inside IPv6 is judged as that IPv4."""
    inner = _embedded_ipv4(address) if isinstance(address, IPv6Address) else address
    if inner is None:
        return address in UNICAST6 and not _is_refused(address)
    return not _is_refused(inner)


def _is_refused(address: Address) -> bool:
    return any(address in network for network in REFUSED)


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    if address in NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour


def read_literal(host: str) -> Address | None:
    """Read a host that is an address in any spelling the C library takes (0x7f.1, 017700000001); None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def resolver(threads: Executor) -> Resolve:
    """Make a resolver that waits for the system's name service in `threads`; it raises OSError for unknown names."""

    async def resolve(host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(
            threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        )
        return [str(row[4][0]) for row in rows]

    return resolve
