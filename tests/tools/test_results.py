"""Results as a model reads them."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tools.neutral import cleaned, harmless, neutralised, shortened
from llamaproxy.tools.results import Image, ToolResult, result_of
from tests.support import recording

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()

_any_text = st.text(st.characters(exclude_categories=[]))
_text = st.text()


# --- shortened


@given(_text, st.integers(1, 60))
def test_a_shortened_text_has_head_and_tail_within_the_limit(text: str, limit: int) -> None:
    short = shortened(text, limit)
    raw = text.encode()
    if len(raw) <= limit:
        assert short == harmless(text)
        return
    head, note, tail = short.split("\n\n[")[0], short, short.rpartition("cut here]\n\n")[2]
    assert len(short.encode()) <= limit + 60
    assert f"of {len(raw)} bytes cut here]" in note
    assert harmless(text).startswith(head) or "\n\n[" in text
    assert harmless(text).endswith(tail)
    assert len(tail.encode()) <= limit // 2


@given(st.text("aä\n 👋", min_size=20), st.integers(0, 19))
def test_the_note_says_how_much_was_cut(text: str, limit: int) -> None:
    short = shortened(text, limit)
    cut = int(short.rpartition("\n\n[")[2].split()[0]) if "bytes cut here" in short else 0
    note = len(f"\n\n[{cut} of {len(text.encode())} bytes cut here]\n\n") if cut else 0
    assert len(text.encode()) == len(short.encode()) - note + cut


@given(
    st.lists(st.sampled_from(["<s>", "[INST]", "\u200b", "\u00e9", "a"]), max_size=200),
    st.integers(0, 120),
)
def test_what_grew_when_it_was_made_harmless_is_within_the_limit(
    pieces: list[str], limit: int
) -> None:
    text = "".join(pieces)
    result = shortened(text, limit)
    note = re.search(r"\n\n\[(\d+) of (\d+) bytes cut here\]\n\n", result)
    text_shown = result if note is None else result[: note.start()] + result[note.end() :]
    assert len(text_shown.encode()) <= limit
    assert harmless(text_shown) == text_shown or note is not None


def test_no_character_is_cut_in_two() -> None:
    assert shortened("👋" * 10, 11).startswith("👋\n\n[")


# --- cleaned


@given(_any_text)
def test_a_cleaned_text_is_valid_unicode_and_stays_clean(text: str) -> None:
    clean = cleaned(text)
    clean.encode()
    assert cleaned(clean) == clean


#: Letters, by Unicode's word, that nobody sees.
_FILLERS = "\u115f\u1160\u3164\uffa0"


@given(
    st.text(
        st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters=_FILLERS)
        | st.sampled_from("\n\r\t")
    )
)
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\x00b\x1bc", "abc"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[?25lx", "x"),
        ("pass\u200bword", "password"),
        ("evil\u202eexe.txt", "evilexe.txt"),
        ("\ufeffa\ufeff", "a"),
        ("hi\U000e0049\U000e0067", "hi"),
        ("a\ufe00\ufe01\ufe02\U000e0101\U000e0110b", "a\ufe00\ufe01b"),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f3f3\ufe0f\u200d\U0001f308"),
        ("a\u115f\uffa0b", "ab"),
        ("\ud83d\udc4b", "👋"),
        ("\ud83d", "\ufffd"),
        ("tab\tline\r\n", "tab\tline\r\n"),
        (
            "\N{FAMILY}\u200d\N{HEAVY BLACK HEART}\ufe0f",
            "\N{FAMILY}\u200d\N{HEAVY BLACK HEART}\ufe0f",
        ),
    ],
)
def test_controls_that_show_nothing_are_removed(text: str, clean: str) -> None:
    assert cleaned(text) == clean


# --- neutralised

TOKENS = [
    "<|im_start|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<<SYS>>",
    "<</SYS>>",
    "<s>",
    "</s>",
    "<tool_call>",
    "</tool_call>",
    "<start_of_turn>",
    "<think>",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<THINK>",
]


@given(st.lists(st.sampled_from([*TOKENS, "<", ">", "|", "<|", "|>", "[", "]", "a", " "])))
def test_no_control_token_is_left(pieces: list[str]) -> None:
    once = neutralised("".join(pieces))
    assert neutralised(once) == once


@pytest.mark.parametrize("token", TOKENS)
def test_a_broken_token_is_still_readable(token: str) -> None:
    text = neutralised(f"before {token} after")
    assert token not in text
    assert text.replace(" ", "") == f"before{token}after"


@given(st.text(st.sampled_from("abc <>|[]/\n")))
def test_nothing_but_a_blank_is_added(text: str) -> None:
    assert neutralised(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["a < b > c", "<p>x</p>", "[x]", "a || b", "List<String>", "|>"])
def test_ordinary_markup_is_not_touched(text: str) -> None:
    assert neutralised(text) == text


@pytest.mark.parametrize("text", ["<|im_\u200bstart|>", "\x1b[0m<|im_start\x00|>", "<\ufeffs>"])
def test_a_token_hidden_by_invisible_characters_is_found(text: str) -> None:
    assert neutralised(cleaned(text)) != cleaned(text)
    assert ToolResult(text).tidied(1000).text == neutralised(cleaned(text))


@given(_any_text, st.integers(1, 200))
def test_a_tidied_result_is_clean_and_within_the_limit(text: str, limit: int) -> None:
    """DESIGN: L14."""
    tidied = ToolResult(text, True).tidied(limit)
    assert tidied.is_error
    assert len(tidied.text.encode()) <= limit + 60
    assert cleaned(tidied.text) == tidied.text


# --- result_of


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([], ""),
        (None, ""),
        ([{"type": "text", "text": "a"}, "b", {"type": "text", "text": ""}], "a\n\nb"),
        ({"type": "text", "text": "a"}, "a"),
        ([{"rows": [1, 2]}], '[{"rows":[1,2]}]'),
        ([{"type": "Feature"}], '[{"type":"Feature"}]'),
        (["a", "b"], '["a","b"]'),
        (["a"], '["a"]'),
        ([1, "a"], '[1,"a"]'),
        ([{"type": "text", "text": "a"}, {"type": "hologram"}], 'a\n\n{"type":"hologram"}'),
        ([{"type": "resource_link", "uri": ["x"], "name": {"a": 1}}], "[resource: ]"),
        ([{"type": "audio", "data": "AAAA", "mimeType": {}}], "[audio: , 3 bytes]"),
        ([{"type": "resource", "resource": {"blob": 7}}], "[resource: , , 0 bytes]"),
        ({"rows": []}, '{"rows":[]}'),
        (7, "7"),
        ([{"type": "text", "text": None}], '{"type":"text","text":null}'),
        ([{"type": "resource", "resource": {"uri": "file:///x", "text": "body"}}], "body"),
        (
            [{"type": "resource", "resource": {"uri": "f:x", "mimeType": "a/b", "blob": "AAAA"}}],
            "[resource: f:x, a/b, 3 bytes]",
        ),
        (
            [{"type": "resource_link", "uri": "f:x", "name": "n", "description": "d"}],
            "[resource: f:x] n d",
        ),
        (
            [{"type": "audio", "mimeType": "audio/wav", "data": "AAAA"}],
            "[audio: audio/wav, 3 bytes]",
        ),
        ([{"type": "image", "data": 5}], '{"type":"image","data":5}'),
        ([{"type": "image"}], '{"type":"image"}'),
    ],
)
def test_any_content_has_a_text(content: Any, text: str) -> None:
    assert result_of(content) == ToolResult(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "text", "data", "image", "x"]), inner)
            | st.builds(lambda data: {"type": "image", "data": data}, inner)
        ),
        max_leaves=6,
    )
)
def test_no_content_is_too_odd(content: Any) -> None:
    assert isinstance(result_of(content).text, str)
    assert result_of(content, is_error=True).text


def test_structured_content_counts_only_where_the_content_is_silent() -> None:
    silent: list[Any] = [None, [], "", [{"type": "text", "text": ""}]]
    for content in silent:
        assert result_of(content, structured={"a": 1}).text == '{"a":1}'
    assert result_of("said", structured={"a": 1}).text == "said"


def test_an_error_says_that_it_is_one() -> None:
    assert result_of("Error executing tool x: no", True).text == "Error executing tool x: no"
    assert result_of("no", True) == ToolResult("Error: no", True)
    assert result_of(None, True).text == "Error: the tool failed without saying why"


def test_a_picture_is_a_note_in_the_text_and_kept_beside_it() -> None:
    """DESIGN: L14."""
    result = result_of(recording("0.6.1", "invoke_mixed")["response"]["body"]["content"])
    assert result.text == "before\n\n[image: image/png, 75 bytes]\n\nafter"
    [image] = result.images
    assert image.media_type == "image/png"
    assert base64.b64decode(image.data).startswith(b"\x89PNG")
    assert image.url.startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(
    ("head", "declared", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n", None, "image/png"),
        (b"\xff\xd8\xff\xe0", None, "image/jpeg"),
        (b"GIF89a", None, "image/gif"),
        (b"RIFF\0\0\0\0WEBP", None, "image/webp"),
        (b"<svg xmlns", None, "image/svg+xml"),
        (b"GIF89a", "image/png", "image/gif"),
        (b"unheard of", "image/avif", "image/avif"),
        (b"unheard of", "text/html", "image/png"),
        (b"unheard of", 'image/x" onload="', "image/png"),
    ],
)
def test_what_a_picture_is_shows_in_its_first_bytes(
    head: bytes, declared: str | None, media_type: str
) -> None:
    data = base64.b64encode(head + bytes(20)).decode()
    [image] = result_of([{"type": "image", "data": data, "mimeType": declared}]).images
    assert image == Image(media_type, data)


@pytest.mark.parametrize("data", ["", "=", "not base64 é", "A"])
def test_a_picture_that_cannot_be_read_is_no_failure(data: str) -> None:
    assert result_of([{"type": "image", "data": data}]).text.startswith("[image: image/png, ")


def test_the_pictures_of_a_failure_are_kept() -> None:
    failed = result_of([{"type": "image", "data": PNG}], is_error=True)
    assert failed.is_error
    assert len(failed.images) == 1


def test_a_structured_result_stays_json_text() -> None:
    body = recording("0.6.1", "invoke_structured")["response"]["body"]
    assert json.loads(result_of(body["content"]).text)["city"] == "Oslo"


@pytest.mark.parametrize(
    "token",
    [
        "<function=x>",
        "<parameter=y>",
        "<tool_call name=x>",
        "<tool_call >",
        "<| im_start |>",
        "<|a|b|>",
        "<BOS_TOKEN>",
        "[gMASK]",
        "<start_of_image>",
        "<unused0>",
        "[MODEL_SETTINGS]",
        "<minimax:tool_call>",
        '<invoke name="x">',
    ],
)
def test_tokens_with_attributes_and_blanks_are_broken_up_too(token: str) -> None:
    assert token not in neutralised(f"a {token} b")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": {"url": {"uri": "data:image/png;base64,iVBORw0KGgo="}}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ],
)
def test_a_picture_in_a_url_is_a_picture(part: Any) -> None:
    result = result_of([part])
    assert result.images == (Image("image/png", "iVBORw0KGgo="),)
    assert "iVBOR" not in result.text


def test_a_picture_elsewhere_is_named() -> None:
    part = {"type": "image", "image": {"url": {"uri": "http://x/y.png"}, "data": None}}
    assert result_of([part]).text == "[image: http://x/y.png]"
