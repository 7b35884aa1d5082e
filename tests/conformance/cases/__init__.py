"""Every case, by section of RFC 9110 and 9112."""

from __future__ import annotations

from ..case import Case
from . import connection, failures, fields, forwarding, framing, request_line, responses

#: By the name of the module that they are in.
GROUPS: dict[str, list[Case]] = {
    "request line": request_line.CASES,
    "fields": fields.CASES,
    "request framing": framing.CASES,
    "connection": connection.CASES,
    "forwarding": forwarding.CASES,
    "responses": responses.CASES,
    "failures": failures.CASES,
}

CASES: dict[str, Case] = {
    f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases
}

assert len(CASES) == sum(map(len, GROUPS.values())), "two cases have the same name"
