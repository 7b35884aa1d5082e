"""Results and descriptions without what a model could read as structure of the chat. Pure."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

#: Controls that show nothing: C0 but for tab and line ends, C1, zero-width space, bidirectional
#: overrides, invisible operators, byte order mark, and tags, with which text can be smuggled.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u115f\u1160\u17b4\u17b5\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)

#: What joins characters or picks a variant of one. Emoji have two in a row; more of them are text
#: that nobody sees.
_JOINERS = "[\u200c\u200d\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
_JOINER_RUNS = re.compile(f"({_JOINERS}{{2}}){_JOINERS}+")

#: What chat templates of common models are made of (ChatML, Llama, Mistral, Gemma, DeepSeek,
#: Hermes and Qwen tool calling): in a tool's result it must not be read as structure.
_CONTROL_TOKENS = re.compile(
    r"<\|[^<>]{1,60}\|>"
    r"|<\uff5c[^<>]{1,60}\uff5c>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|TOOL_CONTENT|ARGS"
    r"|CALL_ID|THINK|IMG|PREFIX|SUFFIX|MIDDLE|MODEL_SETTINGS|gMASK)\]"
    r"|<</?SYS>>"
    r"|</?(?:\w+:)?(?:s|bos|eos|unk|pad|bos_token|eos_token|sop|eop|start_of_turn|end_of_turn"
    r"|start_of_image|end_of_image|tools?|tool_calls?|tool_response|tool_code|tool_outputs?"
    r"|function_calls?|function|invoke|parameter|arg_key|arg_value|think|thinking|system"
    r"|im_start|im_end|fim_prefix|fim_suffix|fim_middle|start_header_id|end_header_id|eot_id"
    r"|unused\d+)(?:[\s=][^<>]{0,200})?/?>",
    re.IGNORECASE,
)


def cleaned(text: str) -> str:
    """*text* as valid Unicode without invisible control characters."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _JOINER_RUNS.sub(r"\1", _INVISIBLE.sub("", _ANSI.sub("", text)))


def neutralised(text: str) -> str:
    """*text* with chat-template control tokens broken up, still readable for a person."""
    # One token may hold another: <|[INST]|>.
    return _CONTROL_TOKENS.sub(lambda token: f"{token[0][0]} {neutralised(token[0][1:])}", text)


def harmless(text: str) -> str:
    """*text* :func:`cleaned` and :func:`neutralised`."""
    if text.isascii() and text.isprintable() and "<" not in text and "[" not in text:
        return text  # most are names and lines of plain words
    return neutralised(cleaned(text))


def shortened(text: str, limit: int) -> str:
    """Head and tail of *text*, harmless: at most *limit* bytes of UTF-8, and a note of the rest.

    It is cut first, so that no more than *limit* bytes need be made harmless, however many there
    are; and, as that adds blanks, cut once more afterwards.
    """
    size = _bytes_in(text)
    if size <= limit:
        text = harmless(text)
        size = _bytes_in(text)
        if size <= limit:
            return text
    tail_limit = limit // 2
    head_limit = limit - tail_limit
    head, tail = _first(text, head_limit), _last(text, tail_limit)
    bytes_cut = size - _bytes_in(head) - _bytes_in(tail)
    safe_head, safe_tail = harmless(head), harmless(tail)
    head, tail = _first(safe_head, head_limit), _last(safe_tail, tail_limit)
    bytes_cut += _bytes_in(safe_head) + _bytes_in(safe_tail) - _bytes_in(head) - _bytes_in(tail)
    return f"{head}\n\n[{bytes_cut} of {size} bytes cut here]\n\n{tail}"


def is_cut(text: str, limit: int) -> bool:
    """Whether *text*, which is :func:`shortened` to *limit*, was longer: then it has the note."""
    return _bytes_in(text) > limit


def _first(text: str, limit: int) -> str:
    """As many whole characters of the beginning of *text* as *limit* bytes hold."""
    return _encoded(text[:limit])[:limit].decode("utf-8", "ignore")


def _last(text: str, limit: int) -> str:
    """As many whole characters of the end of *text* as *limit* bytes hold."""
    if limit == 0:
        return ""
    return _encoded(text[-limit:])[-limit:].decode("utf-8", "ignore")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(_encoded(text))
