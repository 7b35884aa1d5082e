"""Any tool's result as the text that a model reads. Pure (DESIGN: L14)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.tools.neutral import shortened

#: The first bytes of pictures (the tool-runtime API has no media type: recorded from 0.6.1).
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"<svg", "image/svg+xml"),
)


#: Parts of one result that are looked at, and characters of all its pictures that are kept.
_MAX_PARTS, _MAX_IMAGES = 1000, 16 * 1024 * 1024

#: Types of parts, by which a list of parts is told from a list of a tool's own: those of MCP
#: (2025-06-18, "Tool Result") and of the tool-runtime API.
_PART_TYPES = frozenset({"text", "image", "image_url", "audio", "resource", "resource_link"})

#: Characters of a URL, a media type, a name or a description in a note.
_MAX_IN_NOTE = 500


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
        """The note in the text in the picture's place."""
        return f"[image: {self.media_type}, {len(self.data) * 3 // 4} bytes]"


@attrs.frozen
class ToolResult:
    """The result of a tool call: text for the model, and images for clients that can show them."""

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()

    @classmethod
    def failure(cls, message: str) -> ToolResult:
        """A result for the model that reports an error."""
        return cls(message if message.startswith("Error") else f"Error: {message}", True)

    def tidied(self, limit: int) -> ToolResult:
        """The same with its text :func:`shortened` to *limit* bytes, and a note."""
        return ToolResult(shortened(self.text, limit), self.is_error, self.images)


def result_of(content: object, is_error: bool = False, structured: object = None) -> ToolResult:
    """The result with *content*, in the format of the tool-runtime API or of MCP.

    *content* is a text, a part, or a list of parts; *structured* is MCP's ``structuredContent``,
    which counts only where the content has no text (servers are to repeat it there: MCP 2025-06-18,
    "Structured Content").
    """
    texts: list[str] = []
    images: list[Image] = []
    room = _MAX_IMAGES
    for part in _parts(content):
        image = _image(part)
        if image is not None:
            room -= len(image.data)
            if room >= 0:
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


def _parts(content: object) -> list[Any]:
    """The parts of a content; a list of other things is one part, to be shown as JSON (L14)."""
    if content is None:
        return []
    if not isinstance(content, list):
        return [content]
    kinds = ["" if isinstance(part, str) else _type_of(part) for part in content]
    if None in kinds or (content and _PART_TYPES.isdisjoint(kinds)):
        return [content]
    if len(content) <= _MAX_PARTS:
        return content
    half = _MAX_PARTS // 2
    cut = len(content) - 2 * half
    return [*content[:half], f"[{cut} of {len(content)} parts cut here]", *content[-half:]]


def _type_of(part: object) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


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
            parts = (_brief(part.get("title") or part.get("name")), _brief(part.get("description")))
            return " ".join([f"[resource: {_brief(part.get('uri'))}]", *filter(None, parts)])
        if kind in ("image", "image_url") and _image_url(part):
            return f"[image: {_brief(_image_url(part))}]"
        if kind == "audio" and isinstance(part.get("data"), str):
            return f"[audio: {_brief(part.get('mimeType'))}, {len(part['data']) * 3 // 4} bytes]"
    return jsontext.dumps(part).decode()


def _resource(resource: dict[str, Any]) -> str:
    if isinstance(resource.get("text"), str):
        return str(resource["text"])
    blob = resource.get("blob")
    size = len(blob) * 3 // 4 if isinstance(blob, str) else 0
    where, media_type = _brief(resource.get("uri")), _brief(resource.get("mimeType"))
    return f"[resource: {where}, {media_type}, {size} bytes]"


def _brief(text: object) -> str:
    return text[:_MAX_IN_NOTE] if isinstance(text, str) else ""


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
    """The URL of a picture that is not in the result itself, empty if there is none."""
    nested = part.get("image") or part.get("image_url")
    url = nested.get("url") if isinstance(nested, dict) else nested
    if isinstance(url, dict):
        url = url.get("uri")
    return url if isinstance(url, str) else ""


def _media_type(declared: object, data: str) -> str:
    try:
        head = base64.b64decode(data[:64] + "=" * (-len(data[:64]) % 4))
    except (binascii.Error, ValueError):
        head = b""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    # Repeated only if it can be nothing but a media type.
    if isinstance(declared, str) and re.fullmatch(r"image/[a-z0-9.+-]{1,40}", declared):
        return declared
    return "image/png"
