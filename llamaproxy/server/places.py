"""Where clients come in: what descriptions of Twisted endpoints say, and the URL of each. Pure."""

from __future__ import annotations

import os
import re

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

#: The names of the values that a description may have without them, in their order.
_PLAIN = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
    "unix": ("address", "mode", "backlog"),
}

#: A piece of a description, a backslash before what means nothing; its name and its value.
_PIECE = re.compile(r"((?:[^:\\]|\\.)*):", re.DOTALL)
_NAMED = re.compile(r"((?:[^=\\]|\\.)*)=(.*)", re.DOTALL)


@attrs.frozen
class Description:
    """What the description of an endpoint says: its kind, and its values by their names.

    That it is behind ``haproxy:``, Twisted's word for the PROXY protocol, it does not say.
    """

    kind: str
    values: dict[str, str]

    @classmethod
    def read(cls, text: str) -> Description:
        kind, *pieces = _PIECE.findall(re.sub("^(?:haproxy:)+", "", text) + ":")
        names = iter(_PLAIN.get(kind.lower(), ()))
        values = {}
        for piece in pieces:
            named = _NAMED.fullmatch(piece)
            name, value = named.groups() if named else (next(names, ""), piece)
            values[_plain(name)] = _plain(value)
        return cls(kind.lower(), values)


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def client_url(text: str, address: IAddress | None = None) -> str:
    """The URL by which clients reach the endpoint that *text* describes.

    :param address: where it listens. Until that is known the URL has no port if the endpoint is
        one whose socket somebody else has made.
    """
    described = Description.read(text)
    path = described.values.get("address", "") if described.kind == "unix" else None
    host, port = described.values.get("interface", ""), described.values.get("port", "")
    if isinstance(address, UNIXAddress):
        path = os.fsdecode(address.name or b"")
    elif isinstance(address, IPv4Address | IPv6Address):
        host, port = host or address.host, str(address.port)
    if path is not None:
        return f"http+unix://{path}"
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    scheme = "https" if described.kind == "ssl" else "http"
    place = f"[{host}]" if ":" in host else host
    return f"{scheme}://{place}:{port}" if port else f"{scheme}://{place}"
