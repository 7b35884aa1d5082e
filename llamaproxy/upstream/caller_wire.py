"""ClientContexts as bytes, for another process that asks the same servers. Pure."""

from __future__ import annotations

from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.upstream.client_context import ClientContext

#: Bytes of one: a request's head is smaller.
MAX_CALLER = 4 * 1024 * 1024


def caller_bytes(caller: ClientContext) -> bytes:
    """All of *caller*; the bytes of header fields become characters of Latin-1."""
    # All by which contexts are equal; what else there is, they can make again.
    fields = attrs.astuple(caller, recurse=False, filter=lambda field, _: bool(field.eq))
    return jsontext.dumps(_text(fields))


def caller_of(text: bytes) -> ClientContext:
    """The context of which :func:`caller_bytes` has made *text*.

    :raises ValueError: if that is something else, or too large.
    """
    if len(text) > MAX_CALLER:
        raise ValueError("too large for a caller")
    try:
        credentials, tracing, tokens, chat, query, identity_names, chat_fields = jsontext.loads(
            text
        )
        return ClientContext(
            credentials=_named_values(credentials),
            tracing=_named_values(tracing),
            tokens=tuple((str(url), str(token)) for url, token in tokens),
            chat=str(chat),
            query=_bytes(query),
            identity_names=tuple(map(_bytes, identity_names)),
            chat_fields=tuple((_bytes(name), _bytes(value)) for name, value in chat_fields),
        )
    except (AttributeError, TypeError) as error:
        raise ValueError("this is no caller") from error


def _named_values(pairs: list[Any]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
    return tuple((_bytes(name), tuple(map(_bytes, values))) for name, values in pairs)


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else [_text(each) for each in value]


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
