"""Time zones by the names that people use for them, and the time there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

#: Not places but settings of the machine.
_NO_PLACES = {"Factory", "localtime", "posixrules"}

#: A place that no zone is named after, as in "the time in Atlantis".
_ELSEWHERE = re.compile(r"\bin ([A-Z][\w'-]*(?: [A-Z][\w'-]*)*)")


def current_time(timezone: str, now: float) -> str:
    """The moment *now*, in seconds since 1970, on the clocks of an IANA time zone.

    :raises ValueError: if there is no such zone.
    """
    if timezone not in _zones():
        meant = _by_name().get(_fold(timezone))
        hint = f"did you mean {meant}?" if meant else "use an IANA name such as Europe/Oslo"
        raise ValueError(f"there is no time zone {timezone[:60]!r}: {hint}")
    moment = datetime.fromtimestamp(now, ZoneInfo(timezone))
    offset = moment.isoformat(timespec="seconds")[19:]
    return f"{moment:%H:%M:%S} on {moment:%A} {moment.day} {moment:%B %Y} (UTC{offset})"


def zones_in(text: str) -> Iterator[tuple[int, str]]:
    """The zones that *text* names, with their places in it: "Europe/Oslo", "Oslo", "New York".

    A name counts if it is capitalised or follows a word like "in"; some are ordinary words
    (wake, center). If there is none, a capitalised place after "in" is taken as it stands.
    """
    found = False
    for name in _pattern().finditer(_plain(text)):
        if name["lead"] or name["zone"][0].isupper():
            found = True
            yield name.start("zone"), _by_name()[name["zone"].lower()]
    elsewhere = None if found else _ELSEWHERE.search(text)
    if elsewhere:
        yield elsewhere.start(), elsewhere[1]


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - _NO_PLACES)


@cache
def _by_name() -> dict[str, str]:
    """Zones by full name and by last component; of equals (US/Eastern) the shortest wins."""
    names: dict[str, str] = {}
    for zone in sorted(_zones(), key=lambda zone: (zone.count("/"), len(zone), zone)):
        names.setdefault(_fold(zone.rpartition("/")[2]), zone)
    return names | {_fold(zone): zone for zone in _zones()}


@cache
def _pattern() -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(_by_name(), key=len, reverse=True))
    lead = r"(?P<lead>\b(?:in|at|for|and|or)\s+|,\s*)?"
    return re.compile(rf"{lead}(?<![\w/])(?P<zone>{names})(?![\w/])", re.IGNORECASE)


def _fold(text: str) -> str:
    return _plain(text).lower()


def _plain(text: str) -> str:
    """*text* without accents and underscores."""
    letters = unicodedata.normalize("NFKD", text.replace("_", " "))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
