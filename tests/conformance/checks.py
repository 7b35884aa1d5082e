"""What a case may ask of the answer, and of the requests that the upstream saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from .case import Check, Outcome
from .upstream import KEPT


def forwarded_target(*allowed: bytes) -> Check:
    """Every request that the upstream saw had one of these targets, byte for byte."""

    def check(outcome: Outcome) -> str:
        wrong = [each.target for each in outcome.seen if each.target not in allowed]
        return f"upstream saw target {wrong[0]!r}" if wrong else ""

    return check


def forwarded_method(method: bytes) -> Check:
    """Every request that the upstream saw had this method."""

    def check(outcome: Outcome) -> str:
        wrong = [each.method for each in outcome.seen if each.method != method]
        return f"upstream saw method {wrong[0]!r}" if wrong else ""

    return check


def forwarded_body(body: bytes) -> Check:
    """Every request that the upstream saw came with this body, to its end."""

    def check(outcome: Outcome) -> str:
        for each in outcome.seen:
            if not each.complete:
                return "upstream saw a request without its end"
            if each.size != len(body) or each.sha != hashlib.sha1(body).hexdigest():
                said = repr(each.body[:60]) if each.size <= KEPT else "another"
                return f"upstream saw {each.size} bytes of body: {said}"
        return ""

    return check


def never_whole(outcome: Outcome) -> str:
    """The upstream saw no request to its end."""
    return "upstream saw a whole request" if any(e.complete for e in outcome.seen) else ""


def forwarded(name: str, *values: bytes | str) -> Check:
    """Every request that the upstream saw had exactly these values of a field."""
    wanted = [v if isinstance(v, bytes) else v.encode("latin-1") for v in values]

    def check(outcome: Outcome) -> str:
        for each in outcome.seen:
            if (found := each.values(name)) != wanted:
                return f"upstream saw {name}: {found}"
        return ""

    return check


def forwarded_once(name: str) -> Check:
    """Every request that the upstream saw had one value of a field."""

    def check(outcome: Outcome) -> str:
        wrong = [found for each in outcome.seen if len(found := each.values(name)) != 1]
        return f"upstream saw {name}: {wrong[0]}" if wrong else ""

    return check


def not_forwarded(*names: str) -> Check:
    """No request that the upstream saw had any of these fields, as header or trailer."""

    def check(outcome: Outcome) -> str:
        for each in outcome.seen:
            had = {name.lower().decode() for name, _ in each.fields}
            if both := had & set(names):
                return f"upstream saw {', '.join(sorted(both))}"
        return ""

    return check


def forwarded_within(name: str, allowed: Iterable[bytes]) -> Check:
    """Tokens of a field, if the upstream saw it at all, are among these."""
    wanted = set(allowed)

    def check(outcome: Outcome) -> str:
        for each in outcome.seen:
            tokens = {t.strip().lower() for v in each.values(name) for t in v.split(b",")}
            if tokens - wanted:
                return f"upstream saw {name}: {sorted(tokens - wanted)}"
        return ""

    return check


def reply(name: str, *values: bytes | str, nth: int = 0) -> Check:
    """The client saw exactly these values of a field in an answer of 2xx or 3xx."""
    wanted = [v if isinstance(v, bytes) else v.encode("latin-1") for v in values]

    def check(outcome: Outcome) -> str:
        if len(outcome.finals) <= nth or outcome.finals[nth].status >= 400:
            return ""
        found = outcome.finals[nth].values(name)
        return "" if found == wanted else f"client saw {name}: {found}"

    return check


def reply_once(*names: str) -> Check:
    """The client saw each of these fields exactly once in every answer."""

    def check(outcome: Outcome) -> str:
        for each in outcome.finals:
            for name in names:
                if len(found := each.values(name)) != 1:
                    return f"client saw {name}: {found}"
        return ""

    return check


def reply_body(body: bytes, nth: int = 0) -> Check:
    """The client saw this body if the answer was 2xx or 3xx."""

    def check(outcome: Outcome) -> str:
        if len(outcome.finals) <= nth or outcome.finals[nth].status >= 400:
            return ""
        found = outcome.finals[nth].body
        return "" if found == body else f"client saw {len(found)} bytes of body: {found[:60]!r}"

    return check


def reply_without(*names: str) -> Check:
    """The client saw none of these fields in a final answer."""

    def check(outcome: Outcome) -> str:
        for each in outcome.finals:
            had = {name.lower().decode() for name, _ in each.fields}
            if both := had & set(names):
                return f"client saw {', '.join(sorted(both))}"
        return ""

    return check


def interim(*statuses: int) -> Check:
    """The client saw these interim answers, and no others."""

    def check(outcome: Outcome) -> str:
        found = [each.status for each in outcome.replies if each.status < 200]
        return "" if found == list(statuses) else f"client saw interim answers {found}"

    return check


def interim_within(*statuses: int) -> Check:
    """The client saw no interim answers but these, each at most once."""

    def check(outcome: Outcome) -> str:
        found = [each.status for each in outcome.replies if each.status < 200]
        fine = len(set(found)) == len(found) and set(found) <= set(statuses)
        return "" if fine else f"client saw interim answers {found}"

    return check


def framing(*allowed: str) -> Check:
    """The first answer was framed in one of these ways, unless it was an error."""

    def check(outcome: Outcome) -> str:
        if not outcome.finals or outcome.finals[0].status >= 400:
            return ""
        found = outcome.finals[0].framing
        return "" if found in allowed else f"the answer's framing is {found}"

    return check


def raw_without(text: bytes) -> Check:
    """The client saw these bytes nowhere."""

    def check(outcome: Outcome) -> str:
        return f"client saw {text!r}" if text in outcome.raw else ""

    return check


def raw_has(text: bytes) -> Check:
    """The client saw these bytes somewhere."""

    def check(outcome: Outcome) -> str:
        return "" if text in outcome.raw else f"client did not see {text!r}"

    return check
