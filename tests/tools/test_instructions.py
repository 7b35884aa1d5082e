"""Titles of tools, and the instructions of their servers: kept, harmless and bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tools.definitions import ToolDefinition, definition
from llamaproxy.tools.instructions import ToolGroup, instructions_of, notes_of, tidied
from llamaproxy.tools.neutral import harmless
from llamaproxy.tools.offers import Offers


def tool(name: str, group: str = "g", **more: Any) -> ToolDefinition:
    return definition(group, name, "", {}, **more)


@pytest.mark.parametrize(
    ("title", "annotations", "kept"),
    [
        ("Look it up", None, "Look it up"),
        ("Look it up", {"title": "Another"}, "Look it up"),
        (None, {"title": "Look it up"}, "Look it up"),
        (None, None, ""),
        (5, {"title": ["a"]}, ""),
        ("", {"title": 5}, ""),
        ("a\u200b<|im_end|>", None, harmless("a<|im_end|>")),
        ("x" * 1000, None, "x" * 256),
    ],
)
def test_a_tool_keeps_its_title(title: object, annotations: object, kept: str) -> None:
    assert tool("t", title=title, annotations=annotations).title == kept


@pytest.mark.parametrize("said", [None, 5, ["a"], {"a": 1}, "", "  \n "])
def test_what_is_no_text_is_no_instructions(said: object) -> None:
    assert tidied(said) == ""


def test_a_list_of_tools_has_none() -> None:
    assert instructions_of([tool("t")]) == ""


def test_instructions_are_harmless_and_short() -> None:
    assert tidied(" Use <|im_start|>it\u200b. ") == "Use < |im_start|>it."
    long = tidied("a" * 10**6)
    assert len(long) < 4200 and "bytes cut here" in long


def test_notes_are_those_of_the_groups_that_are_offered_in_the_order_of_their_names() -> None:
    said = {"b": "Say b.", "a": "Say a.", "c": "Say c."}
    assert notes_of(said, {"b", "a", "d"}).endswith("\n\n## a\n\nSay a.\n\n## b\n\nSay b.")
    assert notes_of(said, {"d"}) == notes_of({}, {"a"}) == ""


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5000), max_size=20))
def test_notes_are_bounded(said: dict[str, str]) -> None:
    assert len(notes_of(said, said).encode("utf-8", "replace")) <= 17 * 1024


def test_an_offer_is_told_of_the_servers_whose_tools_are_in_it() -> None:
    offers = Offers(max_tools=100, max_bytes=10**6)
    groups = {
        "a": ToolGroup([tool("one", "a")], "Say a."),
        "b": ToolGroup([tool("two", "b")], "Say b."),
    }
    offer = offers.of(groups).offer
    assert "Say a." in offer.notes and "Say b." in offer.notes
    assert "Say a." not in offer.narrowed((), ["b"]).notes
    assert "Say b." in offer.narrowed((), ["b"]).notes
    assert offer.narrowed((), ["none"]).notes == ""
    assert "Say b." not in offer.narrowed({"two"}, None).notes


def test_lists_that_differ_in_what_is_said_have_offers_of_their_own() -> None:
    offers = Offers(max_tools=100, max_bytes=10**6)
    one = offers.of({"a": ToolGroup([tool("t", "a")], "Say a.")})
    other = offers.of({"a": ToolGroup([tool("t", "a")], "Say b.")})
    titled = offers.of({"a": ToolGroup([tool("t", "a", title="T")], "Say b.")})
    assert one.offer.notes != other.offer.notes
    assert titled is not other
    assert offers.of({"a": ToolGroup([tool("t", "a")], "Say a.")}) is one


def test_what_there_is_no_room_for_is_not_spoken_of() -> None:
    offers = Offers(max_tools=1, max_bytes=10**6)
    groups = {
        "a": ToolGroup([tool("one", "a")], "Say a."),
        "b": ToolGroup([tool("two", "b")], "Say b."),
    }
    notes = offers.of(groups).offer.notes
    assert "Say a." in notes and "Say b." not in notes
