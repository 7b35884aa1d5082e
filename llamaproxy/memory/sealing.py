"""Seal: turns as they lie in a store whose operator must not read them. Pure."""

from __future__ import annotations

import os
import zlib

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

#: Bytes of a turn's text that is put into the store: to compress and to encrypt more at once would
#: hold up everybody else's requests.
MAX_TEXT = 1024 * 1024

#: Bytes of what is put there. What cannot be compressed is a little longer than before.
MAX_SEALED = MAX_TEXT + 1024

#: In front of the names of all entries, with the version of their format.
PREFIX = b"llamaproxy:turn:1:"

_NONCE = 12  # bytes (NIST SP 800-38D section 8.2)
_NAME = 16
_KEY = 32

#: Fast rather than small: JSON becomes a fourth of itself in any case.
_LEVEL = 1


class Undecipherable(ValueError):
    """What is no turn that was sealed with this secret for this owner and mark."""


@attrs.frozen(eq=False, repr=False)
class SealedTurn:
    """The place of one turn: its *name* in the store, and what seals and opens it."""

    name: bytes
    _identity: bytes
    _cipher: AESGCM

    def seal(self, text: bytes) -> bytes | None:
        """What is stored of the turn's *text*; None if that is too long."""
        if len(text) > MAX_TEXT:
            return None
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, zlib.compress(text, _LEVEL), self._identity)

    def open(self, value: bytes) -> bytes:
        """The text of the turn of which *value* was stored.

        :raises Undecipherable: if it is none.
        """
        if not _NONCE < len(value) <= MAX_SEALED:
            raise Undecipherable
        nonce, encrypted = value[:_NONCE], value[_NONCE:]
        inflating = zlib.decompressobj()
        try:
            compressed = self._cipher.decrypt(nonce, encrypted, self._identity)
            # One byte more, so that the end of what fits is seen too.
            text = inflating.decompress(compressed, MAX_TEXT + 1)
        except (InvalidTag, zlib.error):
            raise Undecipherable from None
        if len(text) > MAX_TEXT or not inflating.eof:
            raise Undecipherable
        return text


@attrs.frozen(eq=False, repr=False)
class Seal:
    """Seals turns with a *secret*, which is all that the machines that share them need to share."""

    _secret: bytes

    def turn(self, owner: bytes, mark: str) -> SealedTurn:
        """The place of the turn of *owner*, a digest, with that *mark*.

        Its name and its key are made of both, and of the secret: by HKDF (RFC 5869), whose output
        tells nothing of the rest of it. So no two turns have one key.
        """
        identity = b"%b%d:%b%b" % (PREFIX, len(owner), owner, mark.encode())
        derived = HKDF(SHA256(), _NAME + _KEY, salt=None, info=identity).derive(self._secret)
        name = PREFIX + derived[:_NAME].hex().encode("ascii")
        return SealedTurn(name, identity, AESGCM(derived[_NAME:]))
