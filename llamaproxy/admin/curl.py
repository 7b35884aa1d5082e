"""curl: the command that repeats a request, for a shell. Pure."""

from __future__ import annotations

import re
from shlex import quote

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord, RequestRecord

#: Bytes of a body that a command has: Linux takes 128 KiB in one argument.
_MAX_BODY = 100_000

#: Controls that JSON may have as they are, and what turns the writing around: what stands in a
#: terminal is to be what a shell is given.
_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

#: Why a command has not the request's messages.
NOT_KEPT = "the request's messages are not kept (--inspect-contents)"
NOT_ASKED = "the model has not been asked, and so the request's messages are not kept"
TOO_LARGE = "the request's messages are too large, or there was no room for them"


def curl(record: RequestRecord, url: str, body: Json | None, lacking: str = NOT_KEPT) -> Json:
    """The command that repeats the request of *record*; a placeholder stands for its key.

    And, as *curl_lacks*, why one stands for its messages too: empty if they are there.

    :param url: where clients reach the proxy; of a Unix socket it begins with ``http+unix://``.

    :param body: that of its chat, None if it is not known: for the reason *lacking*.
    """
    text = b"" if body is None else jsontext.dumps(body)
    if len(text) > _MAX_BODY:
        text, lacking = b"", TOO_LARGE
    if text or record.chat is None:
        lacking = ""
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
        if record.chat.patterns:
            words += ["-H", f"X-Llamaproxy-Tools: {_field(record.chat.patterns)}"]
        text = text or _placeholder(record.chat, lacking)
        words += ["-H", "Content-Type: application/json", "--data-raw", _shown(text)]
    return {"curl": " ".join(map(quote, words)), "curl_lacks": lacking}


def _field(value: str) -> str:
    """The *value* of a field, whose octets are its characters, as a shell is given it."""
    octets = value.encode("latin-1", "replace")
    try:
        value = octets.decode()
    except UnicodeDecodeError:
        pass
    return _CONTROLS.sub("", value.replace("\t", " "))


def _placeholder(chat: ChatRecord, lacking: str) -> bytes:
    """A body with the words *lacking* in place of its messages."""
    body: Json = {"model": chat.model, "messages": [{"role": "user", "content": lacking}]}
    if chat.streamed:
        body["stream"] = True
    return jsontext.dumps(body)


def _shown(text: bytes) -> str:
    """JSON as a shell is given it."""
    # A shell knows no NUL, and a terminal may act on what controls it: JSON has escapes for both.
    return _CONTROLS.sub(lambda at: f"\\u{ord(at[0]):04x}", text.decode("utf-8", "replace"))
