"""Errors of any server in OpenAI's shape (DESIGN: L21). Pure."""

from __future__ import annotations

import re
from typing import Any

from llamaproxy import jsontext

#: Characters of a message that a person is shown.
_MAX_MESSAGE = 4000

#: Keys of the text in an error, the likeliest first. Llama Stack: ``detail`` up to 0.4,
#: ``error.detail`` in 0.5, ``error.message`` later (recorded); FastAPI, vLLM up to 0.10, SGLang and
#: Cerebras say it flat; Cloudflare has ``errors``, Gemini a list, RFC 9457 ``detail`` and
#: ``title``, Apigee ``fault.faultstring``, OAuth ``error_description`` beside an ``error`` for
#: programs, AWS ``Message`` and ``errorMessage``, MiniMax ``base_resp.status_msg``.
_TEXT_KEYS = (
    *("message", "error_description", "error_message", "errorMessage", "faultstring"),
    *("detail", "error", "errors", "msg", "error_msg", "Message", "err"),
    *("description", "reason", "fault", "title", "text", "body", "base_resp", "status_msg"),
)

#: Levels of nesting that are looked into.
_MAX_DEPTH = 5

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKUP = re.compile("<(?:!doctype|html|head|body|[a-z]+[ />])", re.IGNORECASE)
_TITLE = re.compile("<title>([^<]{1,200})</title>", re.IGNORECASE)


def openai_error(default: dict[str, Any], body: object) -> dict[str, Any]:
    """The error *body* of a server in OpenAI's shape; what it lacks is taken from *default*."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    body = _unwrapped(body)
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(body, dict) and isinstance(error, dict) and _is_text(error.get("message")):
        fields = {key: value for key, value in error.items() if value is not None}
        return {
            **body,
            "error": {**default["error"], **fields, "message": _shown(fields["message"])},
        }
    message = error_text(body)
    if not message:
        return default
    source = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
    return {"error": {**default["error"], **_facts(source), "message": message}}


def _unwrapped(body: object) -> object:
    """The object with an ``error`` in *body* that gateways put into a ``detail`` or ``error``."""
    for _ in range(_MAX_DEPTH):
        within = (body.get("detail"), body.get("error")) if isinstance(body, dict) else ()
        for each in within:
            if isinstance(each, dict) and isinstance(each.get("error"), dict):
                body = each
                break
        else:
            break
    return body


def error_text(body: object) -> str:
    """The text for people in an error of any shape; empty if there is none."""
    return _shown(_text_in(body, _MAX_DEPTH))


def _text_in(error_value: object, depth: int) -> str:
    if isinstance(error_value, str):
        return _text(error_value)
    if depth and isinstance(error_value, dict):
        location = error_value.get("loc")
        text = next(
            filter(None, (_text_in(error_value.get(key), depth - 1) for key in _TEXT_KEYS)), ""
        )
        prefix = ".".join(map(str, location)) if isinstance(location, list) and text else ""
        return (
            f"{prefix}: {text}"
            if prefix
            else text or (_dumped(error_value) if depth < _MAX_DEPTH else "")
        )
    if depth and isinstance(error_value, list):
        return "; ".join(filter(None, (_text_in(each, depth - 1) for each in error_value[:20])))
    return ""


def _facts(source: dict[str, Any]) -> dict[str, Any]:
    """``type``, ``param`` and ``code``, where they are what OpenAI's clients expect."""
    facts = {key: source[key] for key in ("type", "param") if _is_text(source.get(key))}
    code = source.get("code")
    if _is_text(code) or (isinstance(code, int) and not isinstance(code, bool)):
        facts["code"] = code
    return facts


def _text(text: str) -> str:
    """*text* without markup: of a page, nothing but its title is for people."""
    if _MARKUP.search(text[:2000]):
        title = _TITLE.search(text[:2000])
        return title[1].strip() if title else ""
    return text.strip()


def _shown(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text[:_MAX_MESSAGE])


def _dumped(error_value: object) -> str:
    values = error_value.values() if isinstance(error_value, dict) else ()
    return jsontext.dumps(error_value).decode() if any(values) else ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
