"""curl: the command that repeats a request, for a shell. Pure."""

from __future__ import annotations

import re
from shlex import quote

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.records import RequestRecord

#: Bytes of a body that a command has: Linux takes 128 KiB in one argument.
_MAX_BODY = 100_000

#: Controls that JSON may have as they are, and what turns the writing around: what stands in a
#: terminal is to be what a shell is given.
_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

_BODY_PLACEHOLDER = "the request's messages are not kept (--inspect-contents)"


def curl(record: RequestRecord, url: str, body: Json | None) -> str:
    """The command that repeats the request of *record*; a placeholder stands for its key.

    :param url: where clients reach the proxy; of a Unix socket it begins with ``http+unix://``.

    :param body: that of its chat, None if it is not known.
    """
    socket = url.removeprefix("http+unix://")
    words = ["curl", "-g"]
    if socket != url:
        words += ["--unix-socket", socket]
        url = "http://localhost"
    if record.method not in ("GET", "POST") or (record.method == "POST" and record.chat is None):
        words += ["-X", record.method]
    # No option, nor another host: a path begins with a slash.
    words.append(url + (record.path if record.path.startswith("/") else "/"))
    if record.who:
        words += ["-H", "Authorization: Bearer YOUR_KEY"]
    if record.chat is not None:
        words += ["-H", "Content-Type: application/json", "--data-raw", _text(record, body)]
    return " ".join(map(quote, words))


def _text(record: RequestRecord, body: Json | None) -> str:
    """The body as JSON."""
    text = b"" if body is None else jsontext.dumps(body)
    if not text or len(text) > _MAX_BODY:
        chat = record.chat
        message = {"role": "user", "content": _BODY_PLACEHOLDER}
        placeholder: Json = {"model": "" if chat is None else chat.model, "messages": [message]}
        if chat is not None and chat.streamed:
            placeholder["stream"] = True
        text = jsontext.dumps(placeholder)
    # A shell knows no NUL, and a terminal may act on what controls it: JSON has escapes for both.
    return _CONTROLS.sub(lambda at: f"\\u{ord(at[0]):04x}", text.decode("utf-8", "replace"))
