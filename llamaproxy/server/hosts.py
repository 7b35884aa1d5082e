"""AllowedHosts: the names under which clients may ask for this daemon.

A web page can have its own name lead to any address, this one too (DNS rebinding), and then asks as
if it came from here. What it cannot do is to ask for another name than its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

#: A host and its port, as the Host field has them; an IPv6 address is in brackets.
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")

#: The longest name of the DNS (RFC 1035 section 2.3.4), its dot at the end, and a port: nothing
#: longer is looked at, or kept.
_MAX_HOST = 253 + len(".:65535")


class AllowedHosts:
    """Names, with subdomains where they begin with a dot; None means any.

    This machine's own names are always among them: no page can have one.
    """

    def __init__(self, names: Iterable[str] | None = None, unowned: bool = False) -> None:
        """:param unowned: whether every name is among them that no page can have either: an
        address, and one without a dot, which only a network of its own resolves.
        """
        self._unowned = unowned
        self._names = None if names is None else frozenset(names)
        # Clients come again with the same name.
        self._is_allowed = lru_cache(maxsize=1024)(self._contains)

    def __contains__(self, host: bytes) -> bool:
        """Whether *host*, the value of a Host field, is one of them."""
        return self._names is None or (len(host) <= _MAX_HOST and self._is_allowed(host))

    def _contains(self, host: bytes) -> bool:
        names = self._names or frozenset()
        match = _HOST.fullmatch(host.decode("latin-1").lower())
        name = match[1].strip("[]").rstrip(".") if match else ""
        if name in names or is_loopback(name) or (self._unowned and _is_unowned(name)):
            return True
        parts = name.split(".")
        return any("." + ".".join(parts[n:]) in names for n in range(1, len(parts)))


LOOPBACK_NAMES = AllowedHosts(())


UNOWNED_NAMES = AllowedHosts((), unowned=True)


def _is_unowned(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return bool(name) and "." not in name
    return True


def is_loopback(name: str) -> bool:
    """Whether *name* is one that leads to this machine and nowhere else (RFC 6761 section 6.3)."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def hosts_at(addresses: Iterable[IAddress], allowed: AllowedHosts | None) -> AllowedHosts:
    """The hosts of a site that listens there: those *allowed*, if the operator says so.

    Else any, but only loopback's own names where nothing but this machine can connect.
    """
    if allowed is not None:
        return allowed
    return LOOPBACK_NAMES if all(map(_is_on_loopback, addresses)) else AllowedHosts()


def admin_hosts_at(addresses: Sequence[IAddress], allowed: AllowedHosts | None) -> AllowedHosts:
    """The hosts of an admin port that listens there: those *allowed*, if there are any.

    Else those that no page can have: the port asks for no key, and a page whose name led here could
    read what is there, and change things.
    """
    hosts = hosts_at(addresses, allowed)
    return UNOWNED_NAMES if allowed is None and any(map(open_interface, addresses)) else hosts


def open_interface(address: IAddress) -> str:
    """Where others than this machine can connect to what listens there; empty: nowhere."""
    if isinstance(address, UNIXAddress) or _is_on_loopback(address):
        return ""
    host = getattr(address, "host", "")
    return "any interface" if host in ("", "0.0.0.0", "::") else str(host)


def _is_on_loopback(address: IAddress) -> bool:
    return isinstance(address, IPv4Address | IPv6Address) and is_loopback(address.host)
