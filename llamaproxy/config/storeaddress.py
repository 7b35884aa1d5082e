"""StoreAddress: where Redis or Valkey is, and who asks it, by a URL. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote

import attrs

#: Ports of servers and of sentinels (redis.io, "redis-cli" and "High availability with Sentinel").
_PORT, _SENTINEL_PORT = 6379, 26379

_RULE = (
    "must be a URL such as redis://user:password@host:6379/0, rediss://host, "
    "redis+unix:///run/redis.sock?db=0 or redis+sentinel://host:26379,host:26379/name"
)

_SCHEME = re.compile(r"(?:redis|valkey)(?P<tls>s?)(?P<kind>\+sentinel|\+unix|)", re.IGNORECASE)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_DATABASE = re.compile(r"[0-9]{1,5}")


@attrs.frozen
class StoreAddress:
    """Where the store is.

    *hosts* are names and ports: of the server, or of sentinels, which know where the master of
    *service* is; *path* is that of a Unix socket instead. *shown* is the URL without a password.
    """

    shown: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    database: int = 0


def store_address(text: str) -> StoreAddress:
    """The address that the URL *text* has.

    :raises ValueError: saying what it must be, without what was there.
    """
    scheme, separator, rest = text.strip().partition("://")
    match = _SCHEME.fullmatch(scheme)
    if match is None or not separator or not rest.isprintable() or " " in rest or "#" in rest:
        raise ValueError(_RULE)
    kind, tls = match["kind"].lower(), bool(match["tls"])
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    credentials, at, places = authority.rpartition("@")
    user, colon, password = credentials.partition(":")
    if at and not (colon and password):
        raise ValueError(f"{_RULE}, with a password if there is a user")
    address = StoreAddress(
        shown=f"{scheme}://{user}{at if user else ''}{places}{slash}{path}",
        tls=tls,
        user=_decoded(user),
        password=_decoded(password),
    )
    if kind == "+unix":
        name, equals, database = query.partition("=")
        if tls or places or not path or (query and (name != "db" or not equals)):
            raise ValueError(_RULE)
        return attrs.evolve(
            address, path="/" + _decoded(path), database=_database(database if query else "")
        )
    if query:
        raise ValueError(_RULE)
    if kind == "+sentinel":
        name, _, database = path.partition("/")
        hosts = tuple(_host(place, _SENTINEL_PORT) for place in places.split(","))
        if not name:
            raise ValueError(f"{_RULE}, with the name that sentinels have for the master")
        return attrs.evolve(
            address, hosts=hosts, service=_decoded(name), database=_database(database)
        )
    return attrs.evolve(address, hosts=(_host(places, _PORT),), database=_database(path))


def _host(place: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(place)
    port = default_port if match is None or match[3] is None else int(match[3])
    if match is None or not 0 < port < 65536:
        raise ValueError(f"{_RULE}, with a host, and a port from 1 to 65535 if there is one")
    return match[1] or match[2], port


def _database(text: str) -> int:
    if text and _DATABASE.fullmatch(text) is None:
        raise ValueError(f"{_RULE}, with the number of a database if there is one")
    return int(text or "0")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(_RULE) from None
