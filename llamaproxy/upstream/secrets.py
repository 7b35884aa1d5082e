"""Secret: the operator's key for the upstream, masked where the upstream repeats it. Pure.

OpenAI's own answer to a wrong key has the key in it.
"""

from __future__ import annotations

from typing import Any

import attrs

from llamaproxy.errors import UpstreamRefused
from llamaproxy.heads import Fields

#: The names in errors of OpenAI's shape, which are no secret.
_NAMES = frozenset({"error", "message", "type", "param", "code"})


@attrs.frozen(eq=False, repr=False)
class Secret:
    """A key; an empty one hides nothing."""

    key: bytes = attrs.field(default=b"", repr=False)

    def masked(self, text: bytes) -> bytes:
        """*text* with as many asterisks in the key's place."""
        return text.replace(self.key, b"*" * len(self.key)) if self.key else text

    def refusal(self, error: UpstreamRefused) -> UpstreamRefused:
        """*error* without the key."""
        if not self.key:
            return error
        body = self._masked_json(error.body)
        return error if body == error.body else UpstreamRefused(error.status, body)

    def masked_fields(self, fields: Fields) -> Fields:
        """*fields* with the key masked in their values."""
        if not self.key:
            return fields
        return [(name, self.masked(value)) for name, value in fields]

    def _masked_json(self, value: Any) -> Any:
        """*value* with the key masked in its texts; what is JSON by itself may be a key as well."""
        if isinstance(value, str):
            return value.replace(self.key.decode("ascii"), "*" * len(self.key))
        if isinstance(value, list):
            return [self._masked_json(each) for each in value]
        if isinstance(value, dict):
            return {
                name if name in _NAMES else self._masked_json(name): self._masked_json(each)
                for name, each in value.items()
            }
        return value

    def masker(self) -> Masker:
        """A masker for a text that comes in parts."""
        return Masker(self)


class Masker:
    """Masks a secret in a text that comes in parts: delays what may be the beginning of it."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """The next part of the masked text."""
        text = self._secret.masked(self._pending + data)
        keep = min(len(self._secret.key) - 1, len(text))
        self._pending = text[len(text) - keep :] if keep > 0 else b""
        return text[: len(text) - len(self._pending)]

    def finish(self) -> bytes:
        """The last part."""
        pending, self._pending = self._pending, b""
        return pending
