"""Why tools are not offered: known where an offer is narrowed, worked out when somebody looks."""

from __future__ import annotations

import pytest

from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.offers import CLIENT_HAS_IT, NO_ROOM, NOT_ASKED_FOR, Offer, Offers, Withheld


def definition(name: str) -> ToolDefinition:
    return ToolDefinition("g", name, "", {"type": "object", "properties": {}})


def offer(*names: str) -> Offer:
    return Offers(1000, 10**6).of({"g": [definition(name) for name in names]}).offer


def test_of_a_whole_offer_nothing_is_withheld_and_nothing_made() -> None:
    whole = offer("a", "b")
    assert whole.narrowed({"mine"}, None) is whole
    assert dict(whole.withheld) == {} and whole.all_names == ("a", "b")


def test_a_tool_is_withheld_for_the_clients_own_or_for_want_of_a_pattern() -> None:
    narrowed = offer("a", "b", "c").narrowed({"a", "mine"}, ["a", "b"])
    assert narrowed.all_names == ("b",)
    assert dict(narrowed.withheld) == {"a": CLIENT_HAS_IT, "c": NOT_ASKED_FOR}
    again = narrowed.narrowed({"b"}, None)
    expected = {"a": CLIENT_HAS_IT, "b": CLIENT_HAS_IT, "c": NOT_ASKED_FOR}
    assert (dict(again.withheld), len(again.withheld)) == (expected, 3)
    with pytest.raises(KeyError):
        again.withheld["d"]


def test_a_tool_without_room_is_withheld_from_every_chat() -> None:
    fitted = Offers(1, 10**6).of({"g": [definition("a"), definition("b")]}).offer
    assert dict(fitted.withheld) == {"b": NO_ROOM}
    assert dict(fitted.narrowed({"a"}, None).withheld) == {"a": CLIENT_HAS_IT, "b": NO_ROOM}


def test_reasons_are_made_when_somebody_looks_and_hold_no_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Withheld] = []

    def make(self: Withheld) -> dict[str, str]:
        made.append(self)
        return {}

    monkeypatch.setattr(Withheld.__dict__["_reasons"], "func", make)
    narrowed = offer("a", "b").narrowed({"a"}, None)
    assert made == []
    assert not any(isinstance(value, Offer) for value in vars(narrowed.withheld).values())
    assert len(narrowed.withheld) == 0 and made == [narrowed.withheld]
