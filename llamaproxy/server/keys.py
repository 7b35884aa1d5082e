"""ApiKeys: who may use the proxy."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.cors import CorsMemory
from llamaproxy.errors import BadRequest, ProxyError, Unauthorized, error_response
from llamaproxy.heads import RequestHead

_log = Logger()

#: RFC 6750 section 2.1, with any token: what is none of the keys is refused anyway.
_BEARER = re.compile(rb"bearer(?:[ \t]+(.*))?", re.IGNORECASE | re.DOTALL)

#: Fields that are a key and nothing else: the usual one, and Azure OpenAI's.
_KEY_FIELDS = (b"x-api-key", b"api-key")

#: Every visible character of ASCII, which is more than RFC 6750 allows in a token.
_KEY = re.compile(r"[!-~]+")

#: Fields that every preflight has.
_PREFLIGHT_FIELDS = (b"origin", b"access-control-request-method")

#: Stands for credentials that are no key, such as Basic's.
_NO_KEY = b""


def is_key(text: str) -> bool:
    """Whether *text* can be a key."""
    return _KEY.fullmatch(text) is not None


def keys_in(head: RequestHead) -> set[bytes]:
    """The different keys in the fields of a request; empty fields have none.

    ``Authorization`` of another scheme than Bearer counts as a key that is nobody's.
    """
    keys = set()
    for value in head.by_name.get(b"authorization", ()):
        if credentials := value.strip(b" \t"):
            bearer = _BEARER.fullmatch(credentials)
            if bearer is None:
                keys.add(_NO_KEY)
            elif bearer[1]:
                keys.add(bearer[1])
    for name in _KEY_FIELDS:
        for value in head.by_name.get(name, ()):
            if key := value.strip(b" \t"):
                keys.add(key)
    return keys


def caller_of(head: RequestHead) -> str:
    """Who sends a request, for an operator: the first 8 digits of its key's SHA-256.

    Empty for a request without a key; of several, the first counts.
    """
    for name in (b"authorization", *_KEY_FIELDS):
        for value in head.by_name.get(name, ()):
            credentials = value.strip(b" \t")
            bearer = _BEARER.fullmatch(credentials)
            key: bytes = credentials if bearer is None else bearer[1] or b""
            if key:
                return _digest(key).hex()[:8]
    return ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_open(head: RequestHead) -> bool:
    """Whether anybody may send this request."""
    method = head.line.method
    if method == b"OPTIONS":
        is_open = all(map(head.by_name.get, _PREFLIGHT_FIELDS))
    else:
        is_open = method in (b"GET", b"HEAD") and head.path == b"/health"
    return is_open and head.body_length == 0


@attrs.define(eq=False, repr=False)
class ApiKeys:
    """The keys in a file, one a line; they are kept as digests."""

    _path: str
    _digests: tuple[bytes, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def read(cls, path: str) -> ApiKeys:
        """The keys in the file at *path*.

        :raises ValueError: as :meth:`reread`.
        """
        keys = cls.at(path)
        keys.reread()
        return keys

    @classmethod
    def at(cls, path: str) -> ApiKeys:
        """Those in the file at *path*, none of which has been read yet."""
        # twistd leaves the directory that it was started in.
        return cls(os.path.abspath(path))

    @property
    def contents(self) -> list[str]:
        """What was read last, for another process: the digests."""
        return [digest.hex() for digest in self._digests]

    def take(self, contents: list[str]) -> None:
        """Take what another process has read."""
        self._digests = tuple(map(bytes.fromhex, contents))

    def __len__(self) -> int:
        return len(self._digests)

    def reread(self) -> None:
        """Take the keys that are in the file now.

        :raises ValueError: saying why, but not with which key, if the file is unusable; the keys
            are then the same as before.
        """
        try:
            text = Path(self._path).read_text("utf-8-sig")
        except OSError as error:
            raise ValueError(error.strerror or type(error).__name__) from None
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        digests: dict[bytes, None] = {}
        # Not splitlines(): a comment may have one of the line ends that only Unicode knows.
        for number, line in enumerate(text.split("\n"), 1):
            key = line.strip(" \t")
            if not key or key.startswith("#"):
                continue
            if not is_key(key):
                raise ValueError(f"line {number} is not one key of visible ASCII characters")
            digests[_digest(key.encode("ascii"))] = None
        if not digests:
            raise ValueError("there is no key in it")
        self._digests = tuple(digests)

    def admit(self, head: RequestHead) -> bytes:
        """The digest of the key that a request came with; empty if it needs none.

        Two kinds of request need none, if they have no body: those for the proxy's own
        ``/health``, and a browser's preflight, which cannot have one (Fetch standard, section
        4.8).

        :raises ProxyError: if it came with none of these keys, or with two (RFC 6750 section 3.1).
        """
        if _is_open(head):
            return b""
        keys = keys_in(head)
        if not keys:
            raise Unauthorized(
                "No API key was provided. It belongs into the field 'Authorization: Bearer KEY'."
            )
        if len(keys) > 1:
            raise BadRequest("The request has two different API keys.")
        digest = _digest(keys.pop())
        is_valid = False
        for valid in self._digests:  # all of them, so that the time taken tells nothing
            is_valid |= hmac.compare_digest(digest, valid)
        if not is_valid:
            raise Unauthorized()
        return digest


class GuardedResource(Resource):
    """Has a resource render the requests that are admitted; it never sees their keys."""

    isLeaf = True

    def __init__(self, resource: IResource, keys: ApiKeys, cors: CorsMemory | None = None) -> None:
        Resource.__init__(self)
        self._cors = CorsMemory() if cors is None else cors
        self._resource = resource
        self._keys = keys

    def render(self, request: Any) -> Any:
        head: RequestHead = request.head
        try:
            request.key_id = self._keys.admit(head)
        except ProxyError as error:
            self._cors.apply(head.origin, request.responseHeaders)
            request.write(error_response(request, error))
            request.finish()
            return NOT_DONE_YET
        head.remove(b"authorization", *_KEY_FIELDS)
        return self._resource.render(request)


def reread_keys(keys: ApiKeys) -> None:
    """Take the keys that are in their file now, if it is usable, and say so in the log."""
    try:
        keys.reread()
    except ValueError as error:
        _log.warn("the API keys stay as they were: {reason}", reason=str(error))
    else:
        _log.info("API keys read again: {count}", count=len(keys))
