"""Any tool's result as the text that a model reads. Pure (DESIGN: L14)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import attrs

from llamaproxy import jsontext

#: How a picture begins (the tool-runtime API does not say what it is: recorded from 0.6.1).
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"<svg", "image/svg+xml"),
)


@attrs.frozen
class Image:
    """A picture in a result: its media type and base64 text."""

    media_type: str
    data: str

    @property
    def url(self) -> str:
        """The picture as a ``data:`` URL (RFC 2397)."""
        return f"data:{self.media_type};base64,{self.data}"

    @property
    def note(self) -> str:
        """What stands for the picture in the text."""
        return f"[image: {self.media_type}, {len(self.data) * 3 // 4} bytes]"


@attrs.frozen
class ToolResult:
    """What a tool call came to: text for the model, pictures for those who can show them."""

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()

    @classmethod
    def failure(cls, message: str) -> ToolResult:
        """An error that the model is told of."""
        return cls(message if message.startswith("Error") else f"Error: {message}", True)

    def tidied(self, limit: int) -> ToolResult:
        """The same, fit to be shown to a model: at most *limit* bytes and a note."""
        return attrs.evolve(self, text=shortened(neutralised(cleaned(self.text)), limit))


def result_of(content: object, is_error: bool = False, structured: object = None) -> ToolResult:
    """The result that *content* says, in the tool-runtime's words or in MCP's.

    *content* is a text, a part, or a list of parts; *structured* is MCP's ``structuredContent``,
    which counts only where the content is silent (servers are to repeat it there: MCP 2025-06-18,
    "Structured Content").
    """
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts: list[str] = []
    images: list[Image] = []
    for part in parts:
        image = _image(part)
        if image is not None:
            images.append(image)
            texts.append(image.note)
        else:
            texts.append(_text(part))
    if not any(texts) and structured is not None:
        texts.append(_text(structured))
    text = "\n\n".join(text for text in texts if text)
    if is_error:
        return attrs.evolve(
            ToolResult.failure(text or "the tool failed without saying why"), images=tuple(images)
        )
    return ToolResult(text, images=tuple(images))


def _text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind == "resource" and isinstance(part.get("resource"), dict):
            return _resource(part["resource"])
        if kind == "resource_link":
            words = (part.get("title") or part.get("name"), part.get("description"))
            return " ".join([f"[resource: {part.get('uri')}]", *(str(w) for w in words if w)])
        if kind in ("image", "image_url") and _image_url(part):
            return f"[image: {_image_url(part)[:500]}]"
        if kind == "audio" and isinstance(part.get("data"), str):
            return f"[audio: {part.get('mimeType')}, {len(part['data']) * 3 // 4} bytes]"
    return jsontext.dumps(part).decode()


def _resource(resource: dict[str, Any]) -> str:
    if isinstance(resource.get("text"), str):
        return str(resource["text"])
    size = len(str(resource.get("blob") or "")) * 3 // 4
    return f"[resource: {resource.get('uri')}, {resource.get('mimeType')}, {size} bytes]"


def _image(part: object) -> Image | None:
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return None
    nested = part.get("image") or part.get("image_url")
    inner: dict[str, Any] = nested if isinstance(nested, dict) else part
    data = inner.get("data")
    if isinstance(data, str):
        return Image(_media_type(part.get("mimeType"), data), data)
    head, comma, data = _image_url(part).partition(";base64,")
    if comma and head.startswith("data:"):
        return Image(_media_type(head.removeprefix("data:"), data), data)
    return None


def _image_url(part: dict[str, Any]) -> str:
    """Where a picture is that is not in the result itself (the tool-runtime API's ``uri``)."""
    nested = part.get("image") or part.get("image_url")
    url = nested.get("url") if isinstance(nested, dict) else nested
    if isinstance(url, dict):
        url = url.get("uri")
    return url if isinstance(url, str) else ""


def _media_type(said: object, data: str) -> str:
    try:
        head = base64.b64decode(data[:64] + "=" * (-len(data[:64]) % 4))
    except (binascii.Error, ValueError):
        head = b""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    # What is said is only repeated where it can be nothing but a media type.
    if isinstance(said, str) and re.fullmatch(r"image/[a-z0-9.+-]{1,40}", said):
        return said
    return "image/png"


_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

#: Controls that show nothing: C0 but for tab and line ends, C1, zero-width space, bidirectional
#: overrides, invisible operators, byte order mark, and tags, with which text can be smuggled.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

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
    return _INVISIBLE.sub("", _ANSI.sub("", text))


def neutralised(text: str) -> str:
    """*text* with chat-template control tokens broken up, still readable for a person."""
    # One token may hold another: <|[INST]|>.
    return _CONTROL_TOKENS.sub(lambda token: f"{token[0][0]} {neutralised(token[0][1:])}", text)


def shortened(text: str, limit: int) -> str:
    """Head and tail of *text*, at most *limit* bytes of UTF-8, around a note of what was cut."""
    raw = text.encode("utf-8")
    if len(raw) <= limit:
        return text
    half = limit // 2
    head = raw[: limit - half].decode("utf-8", "ignore")
    tail = raw[len(raw) - half :].decode("utf-8", "ignore") if half else ""
    cut = len(raw) - len(head.encode()) - len(tail.encode())
    return f"{head}\n\n[{cut} of {len(raw)} bytes cut here]\n\n{tail}"
