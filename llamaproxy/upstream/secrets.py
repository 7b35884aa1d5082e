"""Secret: a key of ours that an upstream may repeat, and that nobody else is to see. Pure.

OpenAI's own answer to a wrong key has the key in it.
"""

from __future__ import annotations

import attrs
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused


@attrs.frozen
class Secret:
    """A key; an empty one hides nothing."""

    key: bytes = attrs.field(default=b"", repr=False)

    def hidden_in(self, text: bytes) -> bytes:
        """*text* with as many asterisks in the key's place."""
        return text.replace(self.key, b"*" * len(self.key)) if self.key else text

    def refusal(self, error: UpstreamRefused) -> UpstreamRefused:
        """*error* without the key."""
        text = jsontext.dumps(error.body)
        hidden = self.hidden_in(text)
        return error if hidden == text else UpstreamRefused(error.status, jsontext.loads(hidden))

    def hide_in_fields(self, headers: Headers) -> None:
        """Take the key out of header fields."""
        for name, values in list(headers.getAllRawHeaders()) if self.key else ():
            if any(self.key in value for value in values):
                headers.setRawHeaders(name, [self.hidden_in(value) for value in values])

    def hider(self) -> Hider:
        """What takes the key out of a text that comes in parts."""
        return Hider(self)


class Hider:
    """Holds back as much of a text as may be the beginning of a secret."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown of the text so far, and has not been."""
        text = self._secret.hidden_in(self._held + data)
        keep = min(len(self._secret.key) - 1, len(text))
        self._held = text[len(text) - keep :] if keep > 0 else b""
        return text[: len(text) - len(self._held)]

    def finish(self) -> bytes:
        """The rest."""
        held, self._held = self._held, b""
        return held
