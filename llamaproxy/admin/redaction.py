"""Redaction: what was written, without what looks like a credential, and pictures cut. Pure.

It errs on the safe side: it is for an operator who looks at a chat, not for a program. Its cost is
linear in what it is given: no pattern can begin twice in the same run of characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llamaproxy import jsontext
from llamaproxy.jsontext import JsonList

#: Stands for what is not shown.
MASK = "***"

#: What keys are of that are secret.
_KEYS = (
    "access|account|api|auth|client|encryption|host|license|master|private|secret|service|session"
    "|shared|signing|ssh|storage|subscription|webhook"
)

#: Names of fields whose values are secret: ends of what is left of a name without punctuation, in
#: lower case.
_SECRET_NAMES = (
    *("authorization", "token", "password", "passwd", "pwd", "passphrase", "passcode", "secret"),
    *("cookie", "credential", "providerdata", "sessionid", "jwt", "bearer", "connectionstring"),
    *(f"{of}key" for of in _KEYS.split("|")),
)
_PUNCTUATION = re.compile("[^a-z0-9]+")

#: Texts that are JSON themselves, as the arguments of calls, to what depth they are looked into.
_MAX_NESTED = 3

#: The most levels in all that is looked into, such texts among them: what is deeper is not shown.
_MAX_LEVELS = 250

#: The fewest characters of base64 that are no text.
_MIN_BASE64 = 512

_BASE64 = rf"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{{{_MIN_BASE64},}}={{0,2}}"
_PICTURE = re.compile(_BASE64)
_PICTURE_IN_BYTES = re.compile(_BASE64.encode())
_BASE64_TO_A = bytes(65 if re.match(rb"[A-Za-z0-9+/]", bytes([n])) else 0 for n in range(256))
_RUN = b"A" * _MIN_BASE64
_IN_NUMBERS = b"0123456789+eE"

_Replacement = str | Callable[[re.Match[str]], str]

_START = r"(?<![A-Za-z0-9_-])"

#: A name of the last of the patterns in lower case, before a value.
_NAMED = re.compile(
    r"(?:key|token|word|wd|phrase|code|secret|sig|signature|auth)\\?[\"']?\s{0,8}[:=]"
)

#: What credentials look like wherever they stand, each behind words, or what matches, in lower case
#: without which there is none: to look for that costs a tenth at most.
_PATTERNS: tuple[tuple[tuple[str, ...] | re.Pattern[str], re.Pattern[str], _Replacement], ...] = (
    (
        ("provider-data",),
        re.compile(r"(?i)(provider-data[\"']?\s{0,8}[:=])[^\n]+"),
        rf"\1 {MASK}",
    ),
    (("bearer",), re.compile(r"(?i)\b(bearer)\s{1,8}[A-Za-z0-9._~+/=-]{4,}"), rf"\1 {MASK}"),
    (
        ("basic ",),
        re.compile(r"\b([Bb]asic) (?=[^\s0-9=]{0,200}[0-9=])[A-Za-z0-9+/]{8,}={0,2}"),
        rf"\1 {MASK}",
    ),
    # JSON Web Tokens (RFC 7519).
    (
        ("eyj",),
        re.compile(_START + r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"),
        MASK,
    ),
    # Keys of OpenAI, Stripe, GitHub, GitLab, Slack, Hugging Face, Groq, Amazon and Google.
    (
        ("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"),
        re.compile(_START + r"(?:sk|pk|rk)[-_][A-Za-z0-9_-]{8,}"),
        MASK,
    ),
    (
        ("gh", "github", "glpat", "xox", "hf_", "hf-", "gsk"),
        re.compile(_START + r"(?:gh[pousr]|github_pat|glpat|xox[a-z]|hf|gsk)[-_][\w-]{10,}"),
        MASK,
    ),
    (("akia", "asia"), re.compile(_START + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"), MASK),
    (("aiza",), re.compile(_START + r"AIza[A-Za-z0-9_-]{30,}"), MASK),
    # Of Tavily, xAI, NVIDIA, npm, SendGrid and Google's OAuth.
    (
        ("tvly-", "xai-", "nvapi-"),
        re.compile(_START + r"(?:tvly|xai|nvapi)-[A-Za-z0-9_-]{10,}"),
        MASK,
    ),
    (("npm_",), re.compile(_START + r"npm_[A-Za-z0-9]{30,}"), MASK),
    (("sg.", "ya29."), re.compile(_START + r"(?:SG|ya29)\.[A-Za-z0-9_.-]{16,}"), MASK),
    (
        ("private key-",),
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}-----)?"),
        MASK,
    ),
    # User and password in a URL.
    (("://",), re.compile(r"://[^/\s\"'<>]{1,512}@"), f"://{MASK}@"),
    # Fields whose values are of several words: to the end of the line, or of what is quoted.
    (
        ("authorization", "cookie"),
        re.compile(
            r"(?i)((?:authorization|cookie)\\?[\"']?\s{0,8}[:=][^\S\n]{0,8}\\?[\"']?)[^\"'\\\n]{4,}"
        ),
        rf"\g<1>{MASK}",
    ),
    # Names with values in text, queries and JSON that was cut.
    (
        _NAMED,
        re.compile(
            rf"(?i)((?:(?:{_KEYS})[_-]?key|token|password|passwd|pwd|passphrase|passcode|secret"
            r"|[?&](?:[a-z0-9-]{1,30}-)?(?:key|sig|signature|auth))"
            r"\\?[\"']?\s{0,8}[:=]\s{0,8})"
            r"(?:\\?\"[^\"\\\n]{1,2000}|'[^'\n]{1,2000}|[^\s\"',;&\\{}\[\]]{4,})"
        ),
        rf"\g<1>{MASK}",
    ),
)


def redacted(value: Any, nested: int = 0, level: int = 0) -> Any:
    """*value*, which is JSON, without what looks like a credential.

    :param nested: in how many texts that are JSON themselves it stands; *level*: how deep it does.
    """
    if isinstance(value, str):
        return _redacted_text(value, nested, level)
    if isinstance(value, JsonList):
        value = jsontext.loads(value.text)
    if not isinstance(value, list | dict):
        return value
    if level == _MAX_LEVELS:
        return MASK
    if isinstance(value, list):
        return [redacted(each, nested, level + 1) for each in value]
    return {
        _redacted_text(name, _MAX_NESTED, level): MASK
        if _is_secret(name, each)
        else redacted(each, nested, level + 1)
        for name, each in value.items()
    }


def without_pictures(text: bytes) -> bytes:
    """The JSON *text* with what is base64 in it cut, and no shorter than it must be otherwise."""
    if _RUN not in text.translate(_BASE64_TO_A):  # which is found out fifty times as fast
        return text
    return _PICTURE_IN_BYTES.sub(_cut_in_json, text)


def _cut_in_json(match: re.Match[bytes]) -> bytes:
    """What stands for a picture in JSON; a number, which no quotes are around, stays itself."""
    run = match[0]
    if not run.strip(_IN_NUMBERS):
        return run
    return b"%b [%d characters cut]" % (run[:24], len(run) - 24)


def _redacted_text(text: str, nested: int, level: int) -> str:
    text = _PICTURE.sub(
        lambda match: f"{match[0][:24]} [{len(match[0]) - 24} characters cut]", text
    )
    if nested < _MAX_NESTED and text[:1] in ("{", "["):
        try:
            value = jsontext.loads(text)
        except ValueError:
            pass
        else:
            shown = redacted(value, nested + 1, level)
            if shown != value:
                return jsontext.dumps(shown).decode("utf-8", "replace")
    lower = text.lower()
    for words, pattern, replacement in _PATTERNS:
        if any(map(lower.__contains__, words)) if isinstance(words, tuple) else words.search(lower):
            text = pattern.sub(replacement, text)
    return text


def _is_secret(name: str, value: object) -> bool:
    """Whether what stands under *name* is not to be shown; a number of tokens is."""
    if value is None or isinstance(value, bool):
        return False
    plain = _PUNCTUATION.sub("", name.lower()).rstrip("s")
    if isinstance(value, int | float) and plain.endswith("token"):
        return False
    return plain.endswith(_SECRET_NAMES)
